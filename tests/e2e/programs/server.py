"""Answers with: mistakes, questions asked, ticks, lines that came back from a child, children that ended."""

import asyncio
import sys

mistakes = asked = ticks = lines = ended = 0


async def tick():
    global ticks
    while True:
        await asyncio.sleep(0.005)
        ticks += 1


async def echo():
    global lines, mistakes
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec('cat', stdin=pipe, stdout=pipe)
    while True:
        line = b'%d\n' % lines
        child.stdin.write(line)
        mistakes += await child.stdout.readline() != line
        lines += 1


async def short():
    global ended, mistakes
    while True:
        child = await asyncio.create_subprocess_exec('sh', '-c', f'exit {ended % 100}')
        mistakes += await child.wait() != ended % 100
        ended += 1


async def answer(reader, writer):
    global asked
    while (await reader.readline()).strip():
        pass
    asked += 1
    writer.write(f'HTTP/1.0 200 OK\r\n\r\n{mistakes} {asked} {ticks} {lines} {ended}'.encode())
    await writer.drain()
    writer.close()


async def main():
    others = [asyncio.create_task(other()) for other in (tick, echo, short)]
    server = await asyncio.start_server(answer, '127.0.0.1', int(sys.argv[1]))
    await asyncio.gather(server.serve_forever(), *others)


asyncio.run(main())
