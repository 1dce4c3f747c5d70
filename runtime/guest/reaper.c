/* `docker run --init`: process 1 of the container is a copy of this program, which does what an init does: it passes
 * signals on to the image's program, waits for children that nobody else waits for, and ends as the program ends. */
#include "hyper.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static void let_go(int report)
{
    int nothing = open("/dev/null", O_RDWR | O_CLOEXEC);
    close(report); /* its end tells PID 1 that exec worked: that of the program */
    shared_forget();
    for (int i = 0; i < 3; i++)
        dup2(nothing, i);
    close(nothing);
}

static void serve(pid_t program, const sigset_t *all) __attribute__((noreturn));
static void serve(pid_t program, const sigset_t *all)
{
    for (;;) {
        int signal = sigwaitinfo(all, NULL), status;
        if (signal > 0 && signal != SIGCHLD)
            kill(program, signal);
        for (pid_t pid; signal == SIGCHLD && (pid = waitpid(-1, &status, WNOHANG)) > 0;)
            if (pid == program)
                _exit(WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status));
    }
}

void reaper_begin(int report, bool tty)
{
    sigset_t all, before;
    memset(&all, 0xFF, sizeof all); /* sigfillset() leaves out 32 to 34, which musl's threads use: there are none here */
    sigprocmask(SIG_BLOCK, &all, &before);
    pid_t program = fork();
    if (program < 0)
        child_fail(report, GENERIC, "cannot make a process: %s", strerror(errno));
    if (program > 0) {
        prctl(PR_SET_NAME, "init", 0, 0, 0);
        let_go(report);
        serve(program, &all);
    }
    setpgid(0, 0); /* a shell with a terminal is in the foreground, and has jobs */
    if (tty)
        tcsetpgrp(0, getpgrp()); /* while SIGTTOU is blocked */
    sigprocmask(SIG_SETMASK, &before, NULL);
}
