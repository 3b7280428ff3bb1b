/* Without descriptors left on the host each device says so, leaves nothing, and is had as soon as there
 * are some again. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "balloon/balloon.h"
#include "block/block.h"
#include "console/console.h"
#include "iothread/io_internal.h"
#include "iothread/iothread.h"
#include "net/net.h"
#include "port/port.h"
#include "rng/rng.h"
#include "sandbox/filter.h"
#include "tests/files.h"
#include "tests/virtio/guest.h"
#include "thread_internal.h"
#include "vcpu/signals.h"
#include "virtio/vacant.h"
#include "vsock/vsock.h"

enum { RAM = 1 << 20, QUEUES = 2 };

static struct guest guest;
static struct queue queues[QUEUES];
static struct pv_queue served_queues[QUEUES];

/* `make` fails when it may open so many descriptors or fewer, and not when it may open one more. */
static void check_needs(int (*make)(void), unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		struct files files = files_end_behind(i);
		int result = make();

		files_go_on(files);
		CHECK_EQ(result, -EMFILE);
	}
	CHECK_EQ(make(), 0);
}

static int make_balloon(void)
{
	struct pv_balloon *balloon;
	int result = pv_balloon_new(&balloon);

	CHECK_EQ(balloon != NULL, result == 0);
	pv_balloon_free(balloon);
	return result;
}

static int make_rng(void)
{
	struct pv_rng *rng;
	int result = pv_rng_new(0, 0, &rng);

	CHECK_EQ(rng != NULL, result == 0);
	pv_rng_free(rng);
	return result;
}

static int make_console(void)
{
	struct pv_console *console;
	int result = pv_console_new(&console);

	CHECK_EQ(console != NULL, result == 0);
	pv_console_free(console);
	return result;
}

static int make_ports(void)
{
	struct pv_ports *ports;
	int result = pv_ports_new(NULL, 0, &ports);

	CHECK_EQ(ports != NULL, result == 0);
	pv_ports_free(ports);
	return result;
}

static int make_iothread(void)
{
	struct pv_iothread *thread;
	int result = pv_iothread_new(PV_SANDBOX_IOTHREAD, "test", &thread);

	CHECK_EQ(thread != NULL, result == 0);
	pv_iothread_free(thread);
	return result;
}

static int make_engine(pv_engine_make *make)
{
	struct pv_engine *engine;
	int result = make(&engine);

	CHECK_EQ(engine != NULL, result == 0);
	if (engine)
		engine->ops->free(engine);
	return result;
}

static int make_uring(void)
{
	return make_engine(pv_uring_new);
}

static int make_pool(void)
{
	return make_engine(pv_pool_new);
}

static int make_vacant(void)
{
	struct pv_vacant *vacant;
	int result = pv_vacant_start(PV_VACANT_BLOCK, served_queues, 1, guest.irq, &vacant);

	CHECK_EQ(vacant != NULL, result == 0);
	CHECK_EQ(pv_vacant_stop(vacant, PV_FOREVER), 0);
	return result;
}

static int make_vsock(void)
{
	struct pv_vsock_config config = {.guest_cid = 3, .path = "s", .connections = 1};
	struct pv_vsock *vsock;
	int result = pv_vsock_new(&config, &vsock);

	CHECK_EQ(vsock != NULL, result == 0);
	pv_vsock_free(vsock);
	return result;
}

static void test_devices_that_cannot_be_made(void)
{
	check_needs(make_balloon, 1);
	check_needs(make_rng, 1);
	check_needs(make_console, 1);
	check_needs(make_ports, 1);
	check_needs(make_iothread, 1);
	check_needs(make_uring, 1);
	check_needs(make_pool, 2);
	check_needs(make_vacant, 1);
	check_needs(make_vsock, 1);
	CHECK_EQ(make_engine(pv_uring_new), 0);
	CHECK_EQ(pv_uring_probe(), 0);
}

static void test_a_disk_that_cannot_be_started(void)
{
	struct pv_block_config config = {.sectors = 8, .offset_align = 512, .memory_align = 512};
	struct pv_block *block;
	int ends[2];

	CHECK_EQ(pipe(ends), 0); /* no request comes, so that any file will do */
	config.fd = ends[0];
	for (unsigned engine = 0; engine < 2; engine++) {
		struct files files;

		config.flags = engine ? PV_BLOCK_THREADS : 0;
		CHECK_EQ(pv_block_new(&config, &block), 0);
		files = files_end_behind(1); /* its thread's, and none for the engine */
		CHECK_EQ(pv_block_start(block, 0, served_queues, QUEUES, guest.irq), -EMFILE);
		files_go_on(files);
		CHECK_EQ(pv_block_start(block, 0, served_queues, QUEUES, guest.irq), 0);
		CHECK_EQ(pv_block_stop(block, PV_FOREVER), 0);
		pv_block_free(block);
	}
	close(ends[0]);
	close(ends[1]);
}

static void test_a_nic_that_cannot_be_started(void)
{
	struct pv_iothread *thread;
	int ends[2];
	struct pv_net_backend backend = {.kind = PV_NET_TAP, .count = 1, .fds = ends};
	struct pv_net_pair pair = {served_queues[0], served_queues[1]};
	struct pv_net_activation activation = {
		.pairs = &pair, .count = 1, .irq = guest.irq, .memory = guest.memory};
	struct pv_net_config config = {0};
	struct pv_net *net;

	CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
	CHECK_EQ(pv_iothread_new(PV_SANDBOX_IOTHREAD, "test", &thread), 0);
	for (unsigned more = 0; more < 3; more++) {
		struct files files;

		/* What wakes it; what is watched of the tap; the engine of the shared thread. */
		backend.iothread = more > 0 ? thread : NULL;
		CHECK_EQ(pv_net_new(&config, &net), 0);
		CHECK_EQ(pv_net_attach(net, &backend, PV_FOREVER), 0);
		files = files_end_behind(more);
		CHECK_EQ(pv_net_start(net, &activation), -EMFILE);
		files_go_on(files);
		CHECK_EQ(pv_net_start(net, &activation), 0);
		CHECK_EQ(pv_net_stop(net, PV_FOREVER), 0);
		CHECK_EQ(pv_net_detach(net, PV_FOREVER), 0);
		pv_net_free(net);
	}
	pv_iothread_free(thread);
	close(ends[0]);
	close(ends[1]);
}

static void test_a_socket_device_that_cannot_be_started(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct pv_vsock_activation activation = {
		.rx = served_queues[0], .tx = served_queues[1], .irq = guest.irq};
	struct pv_vsock_config config = {.guest_cid = 3, .path = "s", .connections = 1};
	struct pv_vsock *vsock;
	struct files files;

	config.listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	/* Bound to a name that the kernel chooses. */
	CHECK_EQ(bind(config.listen_fd, (void *)&address, sizeof(address.sun_family)), 0);
	CHECK_EQ(listen(config.listen_fd, 1), 0);
	CHECK_EQ(pv_vsock_new(&config, &vsock), 0);
	files = files_end();
	CHECK_EQ(pv_vsock_start(vsock, &activation), -EMFILE);
	files_go_on(files);
	CHECK_EQ(pv_vsock_start(vsock, &activation), 0);
	CHECK_EQ(pv_vsock_stop(vsock, PV_FOREVER), 0);
	pv_vsock_free(vsock);
	close(config.listen_fd);
}

static void test_a_console_that_cannot_be_started(void)
{
	struct pv_console *console;
	int ends[2];
	struct pv_console_config config;

	CHECK_EQ(pipe(ends), 0);
	config = (struct pv_console_config){ends[0], ends[1], ends[0], ends[1], 0, NULL};
	CHECK_EQ(pv_console_new(&console), 0);
	for (unsigned more = 0; more < 4; more++) {
		struct files files = files_end_behind(more);

		CHECK_EQ(pv_console_start(console, &config), -EMFILE);
		files_go_on(files);
		CHECK(!pv_console_is_taken(console));
	}
	CHECK_EQ(pv_console_start(console, &config), 0);
	pv_console_free(console);
	close(ends[0]);
	close(ends[1]);
}

static void test_signals_that_cannot_be_had(void)
{
	struct files files = files_end();
	int fd = pv_signals_open();

	files_go_on(files);
	CHECK_EQ(fd, -EMFILE);
	fd = pv_signals_open();
	CHECK(fd >= 0);
	close(fd);
}

static void test_nothing_is_freed_as_nothing(void)
{
	pv_balloon_free(NULL);
	pv_block_free(NULL);
	pv_console_free(NULL);
	pv_iothread_free(NULL);
	pv_net_free(NULL);
	pv_ports_free(NULL);
	pv_rng_free(NULL);
	pv_vsock_free(NULL);
	CHECK_EQ(pv_vacant_stop(NULL, 0), 0);
	CHECK_EQ(pv_vacant_drain(NULL, 0), 0);
}

int main(void)
{
	guest_make(&guest, RAM);
	for (unsigned i = 0; i < QUEUES; i++) {
		queue_make(&guest, &queues[i], i, false, false);
		served_queues[i] = served(&queues[i]);
	}
	RUN(test_devices_that_cannot_be_made);
	RUN(test_a_disk_that_cannot_be_started);
	RUN(test_a_nic_that_cannot_be_started);
	RUN(test_a_socket_device_that_cannot_be_started);
	RUN(test_a_console_that_cannot_be_started);
	RUN(test_signals_that_cannot_be_had);
	RUN(test_nothing_is_freed_as_nothing);
	for (unsigned i = 0; i < QUEUES; i++)
		queue_unmake(&queues[i]);
	guest_unmake(&guest);
	return 0;
}
