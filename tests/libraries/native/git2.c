/* libgit2: global state that is counted by init and shutdown, thread-local errors, a repository on disk. */
#include "library.h"

#include <git2.h>
#include <string.h>

static char path[512];

static const char *reason(void) {
    const git_error *last = git_error_last();
    return last ? last->message : "no reason";
}

int library_start(const char *folder, const char *file, const char *url, char *error, size_t size) {
    (void)file, (void)url;
    git_repository *repository = NULL;
    if (git_libgit2_init() < 0) FAIL("git_libgit2_init: %s", reason());
    snprintf(path, sizeof path, "%s/repository", folder);
    if (git_repository_init(&repository, path, 1)) FAIL("git_repository_init: %s", reason());
    git_repository_free(repository);
    return 0;
}

int library_use(char *error, size_t size) {
    git_repository *repository = NULL;
    git_blob *blob = NULL;
    git_oid id, missing;
    if (git_repository_open(&repository, path)) FAIL("git_repository_open: %s", reason());
    if (git_blob_create_from_buffer(&id, repository, "hello", 5)) FAIL("git_blob_create_from_buffer: %s", reason());
    if (git_blob_lookup(&blob, repository, &id)) FAIL("git_blob_lookup: %s", reason());
    int same = git_blob_rawsize(blob) == 5 && memcmp(git_blob_rawcontent(blob), "hello", 5) == 0;
    git_blob_free(blob);
    /* An error is kept in a thread-local, with a destructor. */
    git_oid_fromstr(&missing, "0123456789012345678901234567890123456789");
    int found = git_blob_lookup(&blob, repository, &missing);
    git_repository_free(repository);
    if (!same || found != GIT_ENOTFOUND) FAIL("another blob than was written");
    return 0;
}

void library_stop(void) { git_libgit2_shutdown(); }
