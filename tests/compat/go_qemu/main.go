// Command go_qemu talks to a QMP server by go-qemu's SocketMonitor, and prints a line for each
// answer and event it gets: go_qemu SOCKET IMAGE.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/digitalocean/go-qemu/qmp"
)

const patience = 30 * time.Second

type args map[string]any

// A session is one connection. Its answers stay below 2 KiB in all: from there on go-qemu reuses
// the buffer that an answer lies in, perhaps before it is decoded.
type session struct {
	monitor *qmp.SocketMonitor
	events  <-chan qmp.Event
}

func main() {
	socket, image := os.Args[1], os.Args[2]
	talk(socket, control)
	talk(socket, func(s session) { disk(s, image) })
	talk(socket, nic)
	talk(socket, end)
}

func control(s session) {
	s.run("query-status", nil)
	s.run("query-uuid", nil)
	s.run("stop", nil)
	s.event()
	s.run("query-status", nil)
	s.run("cont", nil)
	s.event()
	s.run("system_reset", nil)
	s.event()
	s.run("frobnicate", nil)
}

// disk sends what Kata's govmm package does for a disk.
func disk(s session, image string) {
	s.run("blockdev-add", args{
		"driver":    "raw",
		"read-only": false,
		"node-name": "drive-0",
		"file":      args{"driver": "file", "filename": image},
		"cache":     args{"direct": false, "no-flush": false},
	})
	s.run("device_add", args{
		"id":         "virtio-drive-0",
		"driver":     "virtio-blk-mmio",
		"drive":      "drive-0",
		"addr":       "1",
		"share-rw":   "on",
		"num-queues": "2",
		"romfile":    "",
	})
	s.run("device_del", args{"id": "virtio-drive-0"})
	s.event()
	s.run("blockdev-del", args{"node-name": "drive-0"})
	s.run("blockdev-del", args{"node-name": "drive-0"})
}

// nic sends what Kata's govmm package does for a NIC.
func nic(s session) {
	s.run("netdev_add", args{
		"type":       "tap",
		"id":         "net-0",
		"ifname":     "tap0",
		"downscript": "no",
		"script":     "no",
	})
	s.run("device_add", args{
		"id":      "virtio-net-0",
		"driver":  "virtio-net-pci",
		"netdev":  "net-0",
		"addr":    "1",
		"mac":     "02:00:00:00:00:01",
		"mq":      "on",
		"vectors": 4,
		"romfile": "",
	})
	s.run("device_del", args{"id": "virtio-net-0"})
	s.event()
	s.run("netdev_del", args{"id": "net-0"})
	s.run("netdev_del", args{"id": "net-0"})
}

func end(s session) {
	s.run("quit", nil)
	s.event()
}

func talk(socket string, say func(session)) {
	monitor, err := qmp.NewSocketMonitor("unix", socket, patience)
	must(err)
	must(monitor.Connect())
	fmt.Printf("connected to %v\n", monitor.Version)
	events, err := monitor.Events(context.Background())
	must(err)
	say(session{monitor, received(events)})
	must(monitor.Disconnect())
}

// received takes events as they come: one that nobody takes holds up the answer behind it.
func received(events <-chan qmp.Event) <-chan qmp.Event {
	kept := make(chan qmp.Event, 16)
	go func() {
		defer close(kept)
		for event := range events {
			kept <- event
		}
	}()
	return kept
}

func (s session) run(command string, arguments args) {
	request := qmp.Command{Execute: command}
	if arguments != nil {
		request.Args = arguments
	}
	data, err := json.Marshal(request)
	must(err)
	answer, err := s.monitor.Run(data)
	if err != nil {
		fmt.Printf("%s: error: %v\n", command, err)
		return
	}
	fmt.Printf("%s: %s\n", command, answer)
}

// event prints the next event, whether it came before the last answer or behind it.
func (s session) event() {
	select {
	case event, open := <-s.events:
		if !open {
			fail("the connection ended before an event")
		}
		data, err := json.Marshal(event.Data)
		must(err)
		fmt.Printf("event %s: %s\n", event.Event, data)
	case <-time.After(patience):
		fail("no event in time")
	}
}

func must(err error) {
	if err != nil {
		fail(err)
	}
}

func fail(reason any) {
	fmt.Fprintln(os.Stderr, "go_qemu:", reason)
	os.Exit(1)
}
