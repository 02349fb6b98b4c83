/* OpenSSL: a TLS 1.3 handshake in memory, random numbers, thread-local state with destructors, a handler at exit, and a
   function of the plugin that is called for each connection that is freed, as the crate `openssl` registers one. */
#include "library.h"

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

static SSL_CTX *server, *client;

static int place = -1;
static _Atomic unsigned long freed;

static void on_free(void *parent, void *value, CRYPTO_EX_DATA *data, int index, long number, void *pointer) {
    (void)parent, (void)value, (void)data, (void)index, (void)number, (void)pointer;
    freed++;
}

static const char *reason(void) { return ERR_reason_error_string(ERR_peek_last_error()); }

int library_start(const char *folder, const char *file, const char *url, char *error, size_t size) {
    (void)folder, (void)file, (void)url;
    if (!OPENSSL_init_ssl(OPENSSL_INIT_LOAD_CONFIG, NULL)) FAIL("OPENSSL_init_ssl");
    place = SSL_get_ex_new_index(0, NULL, NULL, NULL, on_free);
    if (place < 0) FAIL("SSL_get_ex_new_index");
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *certificate = X509_new();
    if (!key || !certificate) FAIL("no key: %s", reason());
    ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
    X509_gmtime_adj(X509_getm_notBefore(certificate), 0);
    X509_gmtime_adj(X509_getm_notAfter(certificate), 86400);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate), "CN", MBSTRING_ASC, (const unsigned char *)"localhost", -1, -1, 0);
    X509_set_issuer_name(certificate, X509_get_subject_name(certificate));
    X509_set_pubkey(certificate, key);
    if (!X509_sign(certificate, key, EVP_sha256())) FAIL("X509_sign: %s", reason());
    server = SSL_CTX_new(TLS_server_method());
    client = SSL_CTX_new(TLS_client_method());
    if (SSL_CTX_use_certificate(server, certificate) != 1 || SSL_CTX_use_PrivateKey(server, key) != 1) FAIL("the certificate: %s", reason());
    X509_free(certificate);
    EVP_PKEY_free(key);
    return 0;
}

int library_use(char *error, size_t size) {
    unsigned char bytes[32];
    BIO *near, *far;
    if (RAND_bytes(bytes, sizeof bytes) != 1) FAIL("RAND_bytes: %s", reason());
    SSL *one = SSL_new(server), *other = SSL_new(client);
    BIO_new_bio_pair(&near, 0, &far, 0);
    SSL_set_bio(one, near, near);
    SSL_set_bio(other, far, far);
    SSL_set_accept_state(one);
    SSL_set_connect_state(other);
    for (int n = 0; n < 10 && !(SSL_is_init_finished(one) && SSL_is_init_finished(other)); n++) {
        SSL_do_handshake(other);
        SSL_do_handshake(one);
    }
    int ended = SSL_is_init_finished(one) && SSL_is_init_finished(other);
    int got = ended && SSL_write(one, bytes, sizeof bytes) == sizeof bytes && SSL_read(other, bytes, sizeof bytes) == sizeof bytes;
    SSL_free(one);
    SSL_free(other);
    ERR_clear_error();
    if (!got) FAIL("no handshake");
    return 0;
}

/* Not OPENSSL_cleanup: it ends the library for all who have it in this process. */
void library_stop(void) {
    SSL_CTX_free(server);
    SSL_CTX_free(client);
    CRYPTO_free_ex_index(CRYPTO_EX_INDEX_SSL, place);
}
