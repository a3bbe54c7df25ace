// SPDX-License-Identifier: Apache-2.0
/*
 * The serial port; see serial.h. Registers and interrupts are those of National Semiconductor's PC16550D data sheet. Sending takes no
 * time: the transmitter is always empty again when the guest looks.
 */
#include "vmm/serial.h"

#include <errno.h>
#include <linux/serial_reg.h>
#include <pthread.h>
#include <string.h>

#include "lib/buf.h"
#include "lib/util.h"
#include "vmm/bus.h"
#include "vmm/device.h"
#include "vmm/irq.h"
#include "vmm/vm.h"

#define PORT 0x3f8
#define PORTS 8
#define LINE 4
/* Input that waits for the guest; more than the chip's 16 so that pasted text flows. */
#define QUEUE 4096u
#define MSR_CONNECTED (UART_MSR_DCD | UART_MSR_DSR | UART_MSR_CTS)
#define MCR_MASK 0x1f
#define IER_MASK 0x0f

struct gw_serial {
	struct gw_vm *vm;
	struct gw_tty *tty;
	pthread_mutex_t lock; /* all below */
	uint8_t ier;
	uint8_t fcr;
	uint8_t lcr;
	uint8_t mcr;
	uint8_t msr;          /* with the delta bits */
	uint8_t scr;
	uint16_t divisor;
	bool thre;            /* "transmitter empty" is to be told by an interrupt */
	bool level;           /* of the line, as last set */
	struct gw_buf input;
};

static const struct gw_state_field fields[] = {
	GW_STATE_UINT(struct gw_serial, ier, 1),
	GW_STATE_UINT(struct gw_serial, fcr, 1),
	GW_STATE_UINT(struct gw_serial, lcr, 1),
	GW_STATE_UINT(struct gw_serial, mcr, 1),
	GW_STATE_UINT(struct gw_serial, msr, 1),
	GW_STATE_UINT(struct gw_serial, scr, 1),
	GW_STATE_UINT(struct gw_serial, divisor, 1),
	GW_STATE_UINT(struct gw_serial, thre, 1),
	GW_STATE_BUF(struct gw_serial, input, QUEUE, 1),
	{ }
};
static const struct gw_state_desc desc = { "serial", 1, 1, fields };

/* How many bytes in the receiver ask for attention: the trigger level with FIFOs, else any. */
static size_t trigger(const struct gw_serial *s)
{
	static const uint8_t levels[4] = { 1, 4, 8, 14 };

	return s->fcr & UART_FCR_ENABLE_FIFO ? levels[s->fcr >> 6] : 1;
}

/* The cause that counts most (PC16550D table 4); no bytes ever are lost or broken, so there is no line status. */
static uint8_t cause(const struct gw_serial *s)
{
	if ((s->ier & UART_IER_RDI) && s->input.len >= trigger(s))
		return UART_IIR_RDI;
	/* Fewer than the level: on the real chip after four characters' time, here at once. */
	if ((s->ier & UART_IER_RDI) && s->input.len)
		return UART_IIR_RX_TIMEOUT;
	if ((s->ier & UART_IER_THRI) && s->thre)
		return UART_IIR_THRI;
	if ((s->ier & UART_IER_MSI) && (s->msr & UART_MSR_ANY_DELTA))
		return UART_IIR_MSI;
	return UART_IIR_NO_INT;
}

static void update_line(struct gw_serial *s)
{
	bool level = cause(s) != UART_IIR_NO_INT;

	if (level == s->level)
		return;
	s->level = level;
	gw_irq_set_line(s->vm, LINE, level);
}

static uint8_t read_rbr(struct gw_serial *s)
{
	bool was_full = s->input.len == QUEUE;
	uint8_t byte = 0;

	if (s->input.len) {
		byte = s->input.data[0];
		gw_buf_consume(&s->input, 1);
		if (was_full)
			gw_tty_kick(s->tty);
	}
	return byte;
}

static uint8_t read_iir(struct gw_serial *s)
{
	uint8_t iir = cause(s);

	/* Reading it takes note of an empty transmitter. */
	if (iir == UART_IIR_THRI)
		s->thre = false;
	return s->fcr & UART_FCR_ENABLE_FIFO ? iir | 0xc0 : iir;
}

static uint8_t read_register(struct gw_serial *s, unsigned reg)
{
	uint8_t value;

	switch (reg) {
	case UART_RX:
		return s->lcr & UART_LCR_DLAB ? (uint8_t)s->divisor : read_rbr(s);
	case UART_IER:
		return s->lcr & UART_LCR_DLAB ? (uint8_t)(s->divisor >> 8) : s->ier;
	case UART_IIR:
		return read_iir(s);
	case UART_LCR:
		return s->lcr;
	case UART_MCR:
		return s->mcr;
	case UART_LSR:
		return UART_LSR_TEMT | UART_LSR_THRE | (s->input.len ? UART_LSR_DR : 0);
	case UART_MSR:
		value = s->msr;
		s->msr &= (uint8_t)~UART_MSR_ANY_DELTA;
		return value;
	default:
		return s->scr;
	}
}

/* Modem lines as they are: a connected modem, or in loop-back our own outputs. */
static uint8_t modem_lines(const struct gw_serial *s)
{
	if (!(s->mcr & UART_MCR_LOOP))
		return MSR_CONNECTED;
	return (s->mcr & UART_MCR_RTS ? UART_MSR_CTS : 0) | (s->mcr & UART_MCR_DTR ? UART_MSR_DSR : 0) |
	       (s->mcr & UART_MCR_OUT1 ? UART_MSR_RI : 0) | (s->mcr & UART_MCR_OUT2 ? UART_MSR_DCD : 0);
}

static void write_mcr(struct gw_serial *s, uint8_t value)
{
	uint8_t before = s->msr & 0xf0, now, delta;

	s->mcr = value & MCR_MASK;
	now = modem_lines(s);
	/* Delta bits lie four below their lines; that of RI tells its falling edge alone. */
	delta = (before ^ now) >> 4;
	if (now & UART_MSR_RI)
		delta &= (uint8_t)~UART_MSR_TERI;
	s->msr = now | (s->msr & UART_MSR_ANY_DELTA) | delta;
}

static void write_thr(struct gw_serial *s, uint8_t byte)
{
	if (s->mcr & UART_MCR_LOOP) {
		if (s->input.len < QUEUE)
			(void)gw_buf_append(&s->input, &byte, 1);
	} else {
		gw_tty_put(s->tty, byte);
	}
	s->thre = true;
}

static void write_fcr(struct gw_serial *s, uint8_t value)
{
	/* Switching FIFOs on or off clears them. */
	if ((value & UART_FCR_CLEAR_RCVR) || ((value ^ s->fcr) & UART_FCR_ENABLE_FIFO)) {
		if (s->input.len == QUEUE)
			gw_tty_kick(s->tty);
		s->input.len = 0;
	}
	s->fcr = value & UART_FCR_ENABLE_FIFO ? value & 0xc9 : 0;
}

static void write_register(struct gw_serial *s, unsigned reg, uint8_t value)
{
	switch (reg) {
	case UART_TX:
		if (s->lcr & UART_LCR_DLAB)
			s->divisor = (s->divisor & 0xff00) | value;
		else
			write_thr(s, value);
		break;
	case UART_IER:
		if (s->lcr & UART_LCR_DLAB) {
			s->divisor = (uint16_t)((s->divisor & 0xff) | value << 8);
			break;
		}
		/* Asking for it while the transmitter is empty brings the interrupt at once: Linux tests for this. */
		if (value & ~s->ier & UART_IER_THRI)
			s->thre = true;
		s->ier = value & IER_MASK;
		break;
	case UART_FCR:
		write_fcr(s, value);
		break;
	case UART_LCR:
		s->lcr = value;
		break;
	case UART_MCR:
		write_mcr(s, value);
		break;
	case UART_SCR:
		s->scr = value;
		break;
	default: /* LSR and MSR: factory tests */
		break;
	}
}

static void serial_read(void *dev, uint64_t offset, void *data, unsigned len)
{
	struct gw_serial *s = dev;
	uint8_t *out = data;

	pthread_mutex_lock(&s->lock);
	for (unsigned i = 0; i < len; i++)
		out[i] = read_register(s, (unsigned)offset + i);
	update_line(s);
	pthread_mutex_unlock(&s->lock);
}

static void serial_write(void *dev, uint64_t offset, const void *data, unsigned len)
{
	struct gw_serial *s = dev;
	const uint8_t *in = data;

	pthread_mutex_lock(&s->lock);
	for (unsigned i = 0; i < len; i++)
		write_register(s, (unsigned)offset + i, in[i]);
	update_line(s);
	pthread_mutex_unlock(&s->lock);
}

static const struct gw_bus_ops bus_ops = { .read = serial_read, .write = serial_write };

static size_t tty_room(void *arg)
{
	struct gw_serial *s = arg;
	size_t room;

	pthread_mutex_lock(&s->lock);
	room = QUEUE - s->input.len;
	pthread_mutex_unlock(&s->lock);
	return room;
}

static void tty_input(void *arg, const uint8_t *data, size_t len)
{
	struct gw_serial *s = arg;

	pthread_mutex_lock(&s->lock);
	/* Loop-back may have taken room since it was asked for; a lost key stroke is what a real line does then. */
	(void)gw_buf_append(&s->input, data, GW_MIN(len, QUEUE - s->input.len));
	update_line(s);
	pthread_mutex_unlock(&s->lock);
}

static const struct gw_tty_ops tty_ops = { .room = tty_room, .input = tty_input };

static void serial_reset(void *dev)
{
	struct gw_serial *s = dev;

	pthread_mutex_lock(&s->lock);
	s->ier = 0;
	s->fcr = 0;
	s->lcr = 0;
	s->mcr = 0;
	s->scr = 0;
	s->divisor = 12; /* 9600 baud */
	s->msr = MSR_CONNECTED;
	s->thre = false;
	s->input.len = 0;
	update_line(s);
	pthread_mutex_unlock(&s->lock);
}

static int serial_save(void *dev, struct gw_state_writer *w, struct gw_error *err)
{
	struct gw_serial *s = dev;
	int r;

	pthread_mutex_lock(&s->lock);
	r = gw_state_put(w, &desc, "0", s);
	pthread_mutex_unlock(&s->lock);
	return r < 0 ? gw_error_errno(err, r, "cannot save the serial port") : 0;
}

static int serial_load(void *dev, struct gw_state_reader *r, struct gw_error *err)
{
	struct gw_serial *s = dev;
	int ret;

	pthread_mutex_lock(&s->lock);
	ret = gw_state_get(r, &desc, "0", s, err);
	s->ier &= IER_MASK;
	s->mcr &= MCR_MASK;
	/* The line came with the interrupt controllers' state. */
	s->level = cause(s) != UART_IIR_NO_INT;
	pthread_mutex_unlock(&s->lock);
	return ret;
}

static void serial_free(void *dev)
{
	struct gw_serial *s = dev;

	gw_tty_free(s->tty);
	gw_buf_release(&s->input);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

static const struct gw_device_ops device_ops = {
	.reset = serial_reset,
	.save = serial_save,
	.load = serial_load,
	.free = serial_free,
};

int gw_serial_new(struct gw_vm *vm, struct gw_serial **ret, struct gw_error *err)
{
	struct gw_serial *s = calloc(1, sizeof(*s));
	struct gw_device device = { "serial", "0", &device_ops, s };
	int r;

	if (!s)
		return gw_error_set(err, ENOMEM, "out of memory");
	s->vm = vm;
	pthread_mutex_init(&s->lock, NULL);
	serial_reset(s);
	r = gw_tty_new(&tty_ops, s, &s->tty, err);
	if (r == 0)
		r = gw_vm_add_device(vm, &device, err);
	if (r < 0) {
		serial_free(s);
		return r;
	}
	r = gw_bus_add(gw_vm_pio(vm), PORT, PORTS, &bus_ops, s);
	if (r < 0)
		return gw_error_errno(err, r, "cannot register the serial port");
	*ret = s;
	return 0;
}

struct gw_tty *gw_serial_tty(struct gw_serial *serial)
{
	return serial->tty;
}
