// Answers with: mistakes, questions asked, ticks of a timer, sums of a worker thread, lines written, changes watched.

const { createWriteStream, watch } = require('fs');
const { createServer } = require('http');
const { Worker } = require('worker_threads');

let mistakes = 0, asked = 0, ticks = 0, sums = 0, lines = 0, changes = 0;
setInterval(() => ticks++, 5);

const worker = new Worker(`
  const { parentPort } = require('worker_threads');
  parentPort.on('message', number => {
    let sum = 0;
    for (let term = 1; term <= number; term++) sum += term;
    parentPort.postMessage([number, sum]);
  });
`, { eval: true });
worker.on('message', ([number, sum]) => {
  if (sum !== number * (number + 1) / 2) mistakes++;
  sums++;
  worker.postMessage(1000 + sums % 1000);
});
worker.postMessage(1000);

const out = createWriteStream('lines');
const write = () => out.write(`${lines}\n`, () => { lines++; setTimeout(write, 1); });
write();
out.on('open', () => watch('lines', () => changes++));

createServer((request, answer) => {
  asked++;
  answer.end(`${mistakes} ${asked} ${ticks} ${sums} ${lines} ${changes}`);
}).listen(Number(process.argv[2]), '127.0.0.1');
