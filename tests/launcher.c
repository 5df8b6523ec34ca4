/* What the launcher becomes in its tests: says what it was given, or holds a file of the tree. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

extern char **environ;

/* argv, environment, directory, signals and descriptors, a line each. */
static void report(int argc, char **argv) {
    char line[4096], path[64];
    for (int i = 0; i < argc; i++) printf("argv=%s\n", argv[i]);
    for (char **e = environ; *e; e++) printf("env=%s\n", *e);
    printf("cwd=%s\n", getcwd(line, sizeof line));
    FILE *status = fopen("/proc/self/status", "r");
    while (fgets(line, sizeof line, status))
        if (strncmp(line, "Sig", 3) == 0 && strncmp(line, "SigQ", 4) != 0) fputs(line, stdout);
    fclose(status);
    for (int fd = 0; fd < 256; fd++) {
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(path, line, sizeof line - 1);
        if (n < 0) continue;
        line[n] = 0;
        printf("fd=%d:%s\n", fd, line);
    }
}

/* Maps a file of the tree, waits for a line, and says whether the file is as it was. */
static void hold(const char *name) {
    char path[4096], line[16];
    snprintf(path, sizeof path, "%s/%s", getenv("SLIMLAMBDA_TREE"), name);
    int fd = open(path, O_RDONLY);
    struct stat s;
    if (fd < 0 || fstat(fd, &s) != 0) { perror(path); exit(3); }
    char *map = mmap(0, s.st_size, PROT_READ, MAP_SHARED, fd, 0), *copy = malloc(s.st_size);
    memcpy(copy, map, s.st_size);
    puts("holding");
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin)) exit(4);
    puts(memcmp(map, copy, s.st_size) == 0 ? "unchanged" : "changed");
}

int main(int argc, char **argv) {
    if (argc > 2 && strcmp(argv[1], "hold") == 0) hold(argv[2]);
    else if (argc > 1 && strcmp(argv[1], "report") == 0) report(argc, argv);
    else puts("started");
    return 0;
}
