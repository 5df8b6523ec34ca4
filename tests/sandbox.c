/* A function for the sandbox's tests: speaks to the Runtime API and does what its handler names. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;
static char request_id[64];
static char facts[64 * 1024];

static int call(const char *method, const char *path, const char *body, size_t size, char **answer) {
    char host[64], head[512];
    int port;
    if (sscanf(getenv("AWS_LAMBDA_RUNTIME_API"), "%63[^:]:%d", host, &port) != 2) exit(90);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, host, &to.sin_addr);
    int s = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(s, (struct sockaddr *)&to, sizeof to) != 0) exit(91);
    int n = snprintf(head, sizeof head,
                     "%s /2018-06-01/runtime/%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n",
                     method, path, size);
    if (write(s, head, n) != n) exit(92);
    for (size_t done = 0; done < size;) {
        ssize_t w = write(s, body + done, size - done);
        if (w <= 0) break;
        done += w;
    }
    size_t have = 0, room = 1 << 16;
    char *text = malloc(room + 1);
    for (ssize_t r; (r = read(s, text + have, room - have)) > 0;) {
        have += r;
        if (have == room) text = realloc(text, (room *= 2) + 1);
    }
    close(s);
    text[have] = 0;
    int status = 0;
    sscanf(text, "HTTP/1.1 %d", &status);
    char *id = strcasestr(text, "Lambda-Runtime-Aws-Request-Id:");
    char *end = strstr(text, "\r\n\r\n");
    if (id && id < end) sscanf(id + 30, " %63[0-9a-f-]", request_id);
    if (answer) *answer = end ? end + 4 : "";
    return status;
}

static int answer(const char *kind, const char *body, size_t size) {
    char path[128];
    snprintf(path, sizeof path, "invocation/%s/%s", request_id, kind);
    return call("POST", path, body, size, NULL);
}

static void say(const char *format, ...) {
    va_list list;
    va_start(list, format);
    size_t have = strlen(facts);
    vsnprintf(facts + have, sizeof facts - have, format, list);
    va_end(list);
}

static int failed(int result) { return result < 0 ? errno : 0; }

static int writable(const char *path) {
    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    int error = failed(fd);
    if (fd >= 0) close(fd);
    return error;
}

static void *nothing(void *unused) { return unused; }

static void look(void) {
    char cwd[256], line[256];
    say("uid=%d gid=%d groups=%d cwd=%s\n", getuid(), getgid(), getgroups(0, NULL), getcwd(cwd, sizeof cwd));
    const char *places[] = {"/x", "/var/task/x", "/opt/x", "/etc/x", "/dev/x", "/dev/shm/x", "/tmp/x"};
    for (int i = 0; i < 7; i++) say("write %s=%d\n", places[i], writable(places[i]));
    const char *paths[] = {"/etc/shadow", "/home", "/root", "/usr/share", "/bin/sh", "/sys", "/opt/layer"};
    for (int i = 0; i < 7; i++) say("see %s=%d\n", paths[i], failed(access(paths[i], F_OK)));
    say("read private=%d\n", failed(open("private", O_RDONLY)));
    FILE *status = fopen("/proc/self/status", "r");
    while (fgets(line, sizeof line, status))
        if (!strncmp(line, "CapEff", 6) || !strncmp(line, "CapPrm", 6) || !strncmp(line, "NoNewPrivs", 10)) say("%s", line);
    fclose(status);
    int first = open("/dev/null", O_RDONLY), many = 1;
    say("first descriptor=%d\n", first);
    while (open("/dev/null", O_RDONLY) >= 0) many++;
    say("descriptors=%d errno=%d\n", many + first, errno);
    for (int fd = 3; fd < 2048; fd++) close(fd);
    cpu_set_t cores;
    sched_getaffinity(0, sizeof cores, &cores);
    say("cores=%d\n", CPU_COUNT(&cores));
    pthread_t thread;
    say("thread=%d\n", pthread_create(&thread, NULL, nothing, NULL));
}

static void refused(void) {
    int fd = open("/tmp/f", O_CREAT | O_RDWR, 0600);
    say("posix_fallocate=%d\n", posix_fallocate(fd, 0, 4096));
    say("pdeathsig=%d\n", failed(prctl(PR_SET_PDEATHSIG, 9)));
    say("name=%d\n", failed(prctl(PR_SET_NAME, "other")));
    say("name=%d\n", failed(prctl(PR_SET_NAME, "other")));
    say("nnp=%d\n", failed(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)));
    say("unshare=%d\n", failed(unshare(CLONE_NEWUSER)));
    say("shm_open=%d\n", failed(shm_open("/slim", O_CREAT | O_RDWR, 0600)) != 0);
    say("sem_open=%d\n", sem_open("/slim", O_CREAT, 0600, 1) == SEM_FAILED);
}

static void fill(void) {
    static char block[1 << 20];
    memset(block, 1, sizeof block);
    int fd = open("/tmp/full", O_CREAT | O_WRONLY, 0600);
    ssize_t w;
    long total = 0;
    while ((w = write(fd, block, sizeof block)) > 0) total += w;
    say("errno=%d mib=%ld\n", errno, total >> 20);
}

static int marked(const char *path) {
    if (access(path, F_OK) == 0) return 1;
    writable(path);
    return 0;
}

int main(void) {
    const char *handler = getenv("_HANDLER");
    fprintf(stderr, "slimlambda-trace: {\"v\":1,\"launcher_us\":5,\"unpacked_bytes\":%d}\n", 42);
    printf("out\n");
    fflush(stdout);
    fprintf(stderr, "err\n");
    if (!strcmp(handler, "exit-init")) return 3;
    if (!strcmp(handler, "exit-first-init") && !marked("/tmp/marker")) return 1;
    if (!strcmp(handler, "slow-first-init") && !marked("/tmp/marker")) pause();
    if (!strcmp(handler, "init-error")) {
        const char *body = "{\"errorType\":\"Own.Init\",\"errorMessage\":\"no\"}";
        call("POST", "init/error", body, strlen(body), NULL);
        return 1;
    }
    for (;;) {
        char *event;
        call("GET", "invocation/next", "", 0, &event);
        facts[0] = 0;
        if (!strcmp(handler, "env"))
            for (char **e = environ; *e; e++) say("%s\n", *e);
        else if (!strcmp(handler, "look")) look();
        else if (!strcmp(handler, "refused")) refused();
        else if (!strcmp(handler, "fill")) fill();
        else if (!strcmp(handler, "memory")) {
            size_t size = strtoul(event, NULL, 10) << 20;
            memset(malloc(size), 1, size);
        } else if (!strcmp(handler, "daemon") && fork() == 0) {
            setsid();
            pause();
        } else if (!strcmp(handler, "error")) {
            const char *body = "{\"errorType\":\"Own.Error\",\"errorMessage\":\"bad\"}";
            answer("error", body, strlen(body));
            continue;
        } else if (!strcmp(handler, "wrong-id")) {
            char id[64];
            strcpy(id, request_id);
            strcpy(request_id, "11111111-1111-4111-8111-111111111111");
            int status = answer("response", "", 0);
            strcpy(request_id, id);
            say("%d", status);
        } else if (!strcmp(handler, "big")) {
            size_t size = 6 * 1024 * 1024 + 101;
            answer("response", memset(malloc(size), ' ', size), size);
            continue;
        }
        if (!strcmp(event, "crash")) abort();
        if (!strcmp(event, "hang")) {
            writable("/tmp/hung");
            pause();
        }
        if (!strcmp(event, "hung?")) say("%d", failed(access("/tmp/hung", F_OK)));
        if (facts[0]) answer("response", facts, strlen(facts));
        else answer("response", event, strlen(event));
    }
}
