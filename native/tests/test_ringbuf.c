/* A ring buffer in memory: what it keeps, by itself and behind a stream, with a reader beside. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "stream_internal.h"
#include "tests/check.h"

static void read_back(struct pv_ringbuf *ring, uint32_t size, const char *expected)
{
	uint8_t data[64];
	uint32_t count = pv_ringbuf_read(ring, data, size);

	CHECK_EQ(count, strlen(expected));
	CHECK_EQ(memcmp(data, expected, count), 0);
}

static void put(struct pv_ringbuf *ring, const char *text)
{
	pv_ringbuf_write(ring, (const uint8_t *)text, strlen(text));
}

static void test_sizes(void)
{
	static const uint32_t refused[] = {0, 1, 3, 12, PV_RINGBUF_MAX * 2, UINT32_MAX};
	struct pv_ringbuf *ring;

	for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
		CHECK_EQ(pv_ringbuf_new(refused[i], &ring), -EINVAL);
		CHECK(!ring);
	}
	CHECK_EQ(pv_ringbuf_new(2, &ring), 0);
	pv_ringbuf_free(ring);
	CHECK_EQ(pv_ringbuf_new(PV_RINGBUF_MAX, &ring), 0);
	pv_ringbuf_free(ring);
	pv_ringbuf_free(NULL);
}

static void test_the_newest_bytes_are_kept(void)
{
	struct pv_ringbuf *ring;

	CHECK_EQ(pv_ringbuf_new(8, &ring), 0);
	read_back(ring, 8, "");
	put(ring, "abc");
	put(ring, "");
	read_back(ring, 2, "ab");
	put(ring, "defghij");
	read_back(ring, 64, "cdefghij");
	read_back(ring, 64, "");
	put(ring, "abc");
	put(ring, "0123456789");
	read_back(ring, 0, "");
	read_back(ring, 3, "234");
	put(ring, "x");
	read_back(ring, 64, "56789x");
	pv_ringbuf_free(ring);
}

static void test_behind_a_stream(void)
{
	char one[] = "one ", two[] = "two";
	const struct iovec iov[] = {{one, 4}, {NULL, 0}, {two, 3}};
	int fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
	struct pv_ringbuf *ring;
	struct pv_stream stream;

	CHECK_EQ(pv_ringbuf_new(16, &ring), 0);
	CHECK_EQ(pv_stream_open(&stream, fd, PV_STREAM_WRITE), 0);
	stream.ringbuf = ring;
	CHECK_EQ(pv_stream_writev(&stream, iov, 3), 7);
	CHECK_EQ(pv_stream_write(&stream, (const uint8_t *)"!", 1), 1);
	read_back(ring, 64, "one two!");
	pv_stream_close(&stream);
	CHECK(!stream.ringbuf);
	pv_ringbuf_free(ring);
	close(fd);
}

enum { ROUNDS = 20000 };

static void *write_numbers(void *ring)
{
	for (uint32_t i = 0; i < ROUNDS; i++)
		pv_ringbuf_write(ring, (const uint8_t *)&i, sizeof(i));
	return NULL;
}

/* Bytes are taken whole writes at a time, for the size is a multiple of theirs. */
static void test_a_reader_beside_the_writer(void)
{
	struct pv_ringbuf *ring;
	uint32_t last = 0, value = 0;
	pthread_t writer;

	CHECK_EQ(pv_ringbuf_new(64, &ring), 0);
	CHECK_EQ(pthread_create(&writer, NULL, write_numbers, ring), 0);
	while (last != ROUNDS - 1) {
		uint32_t count = pv_ringbuf_read(ring, (uint8_t *)&value, sizeof(value));

		CHECK(count == 0 || count == sizeof(value));
		CHECK(value >= last);
		last = value;
	}
	pthread_join(writer, NULL);
	read_back(ring, 64, "");
	pv_ringbuf_free(ring);
}

int main(void)
{
	RUN(test_sizes);
	RUN(test_the_newest_bytes_are_kept);
	RUN(test_behind_a_stream);
	RUN(test_a_reader_beside_the_writer);
	return 0;
}
