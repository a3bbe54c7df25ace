// SPDX-License-Identifier: Apache-2.0
/* Passphrases and keys of repositories: from files, or typed; see cli-repo.h. */
#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <termios.h>

#include "agent/cli-repo.h"
#include "agent/pki.h"
#include "lib/parse.h"
#include "lib/util.h"

#define MAX_PASSPHRASE 1024u /* bytes */

void gw_cli_secret_release(struct gw_cli_secret *s)
{
	if (s->passphrase)
		OPENSSL_clear_free(s->passphrase, MAX_PASSPHRASE + 1);
	EVP_PKEY_free(s->host);
	memset(s, 0, sizeof(*s));
}

/* ---- from files ---- */

/* All of it, up to a last line end. `out` has MAX_PASSPHRASE + 1 bytes. Pipes do as well as files. */
static int read_passphrase(int fd, const char *name, char *out, struct gw_error *err)
{
	size_t len = 0;
	ssize_t n;

	do {
		n = read(fd, out + len, MAX_PASSPHRASE + 1 - len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return gw_error_set(err, EIO, "cannot read the passphrase from %s: %m", name);
		len += (size_t)n;
	} while (n != 0 && len <= MAX_PASSPHRASE);
	if (len > MAX_PASSPHRASE)
		return gw_error_set(err, EINVAL, "%s holds more than %u bytes: that is no passphrase", name, MAX_PASSPHRASE);
	if (len && out[len - 1] == '\n')
		len--;
	if (len && out[len - 1] == '\r')
		len--;
	out[len] = '\0';
	if (len == 0)
		return gw_error_set(err, EINVAL, "%s holds no passphrase: it is empty", name);
	if (strlen(out) != len || strchr(out, '\n'))
		return gw_error_set(err, EINVAL, "%s holds no passphrase: it has more than one line, or zero bytes", name);
	return 0;
}

static int read_passphrase_file(const char *path, char *out, struct gw_error *err)
{
	gw_autofd fd = -1;

	if (!strcmp(path, "-"))
		return read_passphrase(STDIN_FILENO, "standard input", out, err);
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	if (fd < 0)
		return gw_error_set(err, EINVAL, "cannot open the passphrase file %s: %m", path);
	return read_passphrase(fd, path, out, err);
}

/* ---- typed ---- */

/* A line that the terminal gives whole. A signal ends it. */
static int read_line(int tty, int signals, char *out, struct gw_error *err)
{
	struct pollfd fds[] = { { tty, POLLIN, 0 }, { signals, POLLIN, 0 } };
	struct signalfd_siginfo info;
	ssize_t n;

	while (poll(fds, 2, -1) < 0) {
		if (errno != EINTR)
			return gw_error_set(err, EIO, "cannot read the terminal: %m");
	}
	if (fds[1].revents && read(signals, &info, sizeof(info)) == (ssize_t)sizeof(info))
		return gw_error_set(err, ECANCELED, "cancelled");
	n = read(tty, out, MAX_PASSPHRASE + 1);
	if (n < 0)
		return gw_error_set(err, EIO, "cannot read the terminal: %m");
	if (n == 0 || (n == 1 && out[0] == '\n'))
		return gw_error_set(err, EINVAL, "no passphrase was typed");
	if (out[n - 1] != '\n')
		return gw_error_set(err, EINVAL, "a passphrase has at most %u bytes", MAX_PASSPHRASE);
	out[n - 1] = '\0';
	return strlen(out) == (size_t)n - 1 ? 0 : gw_error_set(err, EINVAL, "a passphrase has no zero bytes");
}

/* Without echo. Signals wait meanwhile: the terminal is as it was before one of them ends the program. */
static int prompt(int tty, const char *what, const char *url, char *out, struct gw_error *err)
{
	struct termios saved, quiet;
	gw_autofd signals = -1;
	sigset_t set, before;
	char clean[512];
	int r;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGQUIT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	signals = signalfd(-1, &set, SFD_CLOEXEC);
	if (signals < 0 || tcgetattr(tty, &saved) < 0)
		return gw_error_set(err, EIO, "cannot ask on the terminal: %m");
	sigaddset(&set, SIGTSTP);
	sigprocmask(SIG_BLOCK, &set, &before);
	quiet = saved;
	quiet.c_lflag &= ~(tcflag_t)(ECHO | ECHOE | ECHOK);
	quiet.c_lflag |= ICANON | ISIG | ECHONL;
	r = tcsetattr(tty, TCSAFLUSH, &quiet) < 0 ? gw_error_set(err, EIO, "cannot ask on the terminal: %m") : 0;
	if (r == 0) {
		dprintf(tty, "%s of %s: ", what, gw_clean_text(url, clean, sizeof(clean)));
		r = read_line(tty, signals, out, err);
	}
	tcsetattr(tty, TCSAFLUSH, &saved);
	sigprocmask(SIG_SETMASK, &before, NULL);
	if (r == -ECANCELED)
		dprintf(tty, "\n");
	return r;
}

static int ask(const char *what, const char *url, bool new, char *out, struct gw_error *err)
{
	gw_autofd tty = open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY);
	char again[MAX_PASSPHRASE + 1];
	int r;

	if (tty < 0)
		return gw_error_set(err, EINVAL, "no passphrase: there is no terminal to ask on, and neither --passphrase-file, nor "
				    "GODWIT_REPO_PASSPHRASE_FILE, nor --key-file");
	r = prompt(tty, what, url, out, err);
	if (r < 0 || !new)
		return r;
	r = prompt(tty, "The same again", url, again, err);
	if (r == 0 && strcmp(again, out))
		r = gw_error_set(err, EINVAL, "the two passphrases differ");
	OPENSSL_cleanse(again, sizeof(again));
	return r;
}

/* ---- keys ---- */

/* PEM that is encrypted would be asked for by OpenSSL, on the terminal. */
static int no_password(char *buf, int size, int writing, void *self)
{
	return -1;
}

static int read_key(const char *path, EVP_PKEY **ret, struct gw_error *err)
{
	gw_autofile *f = fopen(path, "re");

	if (!f)
		return gw_error_set(err, EINVAL, "cannot open the key %s: %m", path);
	*ret = PEM_read_PrivateKey(f, NULL, no_password, NULL);
	return *ret ? 0 : gw_ssl_error(err, EINVAL, "%s holds no private key that can be read", path);
}

int gw_cli_public_key_read(const char *path, EVP_PKEY **ret, char name[64], struct gw_error *err)
{
	gw_autofile *f = fopen(path, "re");
	X509 *cert;

	if (!f)
		return gw_error_set(err, EINVAL, "cannot open %s: %m", path);
	name[0] = '\0';
	cert = PEM_read_X509(f, NULL, no_password, NULL);
	if (cert) {
		if (X509_NAME_get_text_by_NID(X509_get_subject_name(cert), NID_commonName, name, 64) < 0)
			name[0] = '\0';
		*ret = X509_get_pubkey(cert);
		X509_free(cert);
	} else {
		rewind(f);
		*ret = PEM_read_PUBKEY(f, NULL, no_password, NULL);
	}
	if (!*ret)
		return gw_ssl_error(err, EINVAL, "%s holds neither a certificate nor a public key", path);
	ERR_clear_error();
	return 0;
}

/* ---- either ---- */

static int read_either(const struct gw_cli_secret_from *from, const char *what, const char *url, bool new, struct gw_cli_secret *s,
		       struct gw_error *err)
{
	int r;

	if (from->key_file) {
		r = read_key(from->key_file, &s->host, err);
		s->secret.host = s->host;
		return r;
	}
	s->passphrase = OPENSSL_zalloc(MAX_PASSPHRASE + 1);
	if (!s->passphrase)
		return gw_error_set(err, ENOMEM, "out of memory");
	s->secret.passphrase = s->passphrase;
	return from->passphrase_file ? read_passphrase_file(from->passphrase_file, s->passphrase, err) :
				       ask(what, url, new, s->passphrase, err);
}

int gw_cli_secret_expect(struct gw_cli_secret *s, const char *fingerprint, struct gw_error *err)
{
	s->secret.fingerprint = NULL;
	if (!fingerprint)
		return 0;
	if (gw_parse_hex(fingerprint, s->fingerprint, sizeof(s->fingerprint), NULL) < 0)
		return gw_error_set(err, EINVAL, "'%s' is no fingerprint: that is %u hexadecimal digits, which 'godwit repo stats' tells",
				    fingerprint, 2 * GW_REPO_ID_LEN);
	s->secret.fingerprint = s->fingerprint;
	return 0;
}

int gw_cli_secret_read(const struct gw_cli_secret_from *from, const char *what, const char *url, bool new, struct gw_cli_secret *ret,
		       struct gw_error *err)
{
	int r;

	memset(ret, 0, sizeof(*ret));
	r = gw_cli_secret_expect(ret, from->fingerprint, err);
	if (r == 0)
		r = read_either(from, what, url, new, ret, err);
	if (r < 0)
		gw_cli_secret_release(ret);
	return r;
}
