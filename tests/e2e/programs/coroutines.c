/* Coroutines on small stacks of the heap, handed on between four threads: each writes its sum beside its stack.
   Every thousandth step of a coroutine is a call that waits, on its small stack. A line a lap. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <ucontext.h>

enum { THREADS = 4, COROUTINES = 64, STACK = 16 * 1024, STEPS = 200 };

struct coroutine {
    ucontext_t here, *home;
    unsigned number, step;
    unsigned long sum;
    char *stack;
};

static void run(unsigned low, unsigned high)
{
    struct coroutine *self = (void *)((unsigned long)high << 32 | low);
    double product = 1;
    for (;;) {
        self->step++;
        self->sum += (unsigned long)self->number * self->step;
        product = product * 3 / 2 / 1.5;
        if (product != 1)
            self->sum = 0;
        if (self->step % STEPS == self->number) {
            struct timespec pause = { 0, 2000000 };
            nanosleep(&pause, NULL);
        }
        swapcontext(&self->here, self->home);
    }
}

static void *work(void *name)
{
    long thread = (long)name;
    ucontext_t home;
    struct coroutine *all = calloc(COROUTINES, sizeof *all);
    for (unsigned n = 0; n < COROUTINES; n++) {
        struct coroutine *c = &all[n];
        c->number = n;
        c->home = &home;
        c->stack = malloc(STACK);
        getcontext(&c->here);
        c->here.uc_stack.ss_sp = c->stack;
        c->here.uc_stack.ss_size = STACK;
        makecontext(&c->here, (void (*)(void))run, 2, (unsigned)(unsigned long)c, (unsigned)((unsigned long)c >> 32));
    }
    char file[32];
    snprintf(file, sizeof file, "laps-%ld", thread);
    FILE *out = fopen(file, "w");
    setvbuf(out, NULL, _IOLBF, 0);
    for (unsigned long lap = 1;; lap++) {
        for (unsigned step = 0; step < STEPS; step++)
            for (unsigned n = 0; n < COROUTINES; n++)
                swapcontext(&home, &all[n].here);
        unsigned long steps = lap * STEPS, good = 1;
        for (unsigned n = 0; n < COROUTINES; n++)
            good &= all[n].step == steps && all[n].sum == n * (steps * (steps + 1) / 2);
        fprintf(out, good ? "lap %lu\n" : "BAD lap %lu\n", lap);
    }
    return NULL;
}

int main(void)
{
    pthread_t threads[THREADS];
    for (long n = 0; n < THREADS; n++)
        pthread_create(&threads[n], NULL, work, (void *)n);
    pthread_join(threads[0], NULL);
    return 1;
}
