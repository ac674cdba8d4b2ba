"""A pool of processes with a lock, a shared number, an array and a queue; a line a lap."""

import multiprocessing
import signal
import sys


def start(*given):
    global lock, number, array
    lock, number, array = given


def work(value):
    with lock:
        number.value += 1
    array[value] = (array[value] + 1) % 256
    return value * value


if __name__ == '__main__':
    context = multiprocessing.get_context(sys.argv[1])
    queue = context.Queue()
    shared = context.Lock(), context.Value('l', 0), context.Array('B', 50)
    start(*shared)
    with context.Pool(3, start, shared) as pool, open('laps', 'w', buffering=1) as out:
        # An end in order, in which the semaphores are removed.
        ended = []
        signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
        lap = 0
        while not ended:
            lap += 1
            good = pool.map(work, range(50)) == [value * value for value in range(50)]
            good = good and number.value == 50 * lap and bytes(array[:]) == bytes([lap % 256]) * 50
            queue.put(lap)
            good = good and queue.get() == lap
            out.write('lap %d\n' % lap if good else 'BAD lap %d\n' % lap)
        pool.close()
        pool.join()
