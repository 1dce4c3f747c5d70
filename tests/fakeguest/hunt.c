/* A container's process 1 that sends a signal to each process of its namespace as soon as there is one.
 *
 *   hunt SIGNAL [SECOND]
 *
 * With SECOND it waits for a byte on stdin after each, and sends that as well. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int count, char **args)
{
    int first = atoi(args[1]), second = count > 2 ? atoi(args[2]) : 0;
    char byte;
    setvbuf(stdout, NULL, _IONBF, 0);
    printf("ready\n");
    for (pid_t pid = getpid() + 1;; pid++) {
        while (kill(pid, first) != 0 && errno == ESRCH)
            ;
        printf("caught %d\n", (int)pid);
        if (second && read(0, &byte, 1) == 1)
            kill(pid, second);
    }
}
