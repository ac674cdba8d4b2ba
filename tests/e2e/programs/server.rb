# Answers with: mistakes, questions asked, numbers of a fiber, of an enumerator, ticks, sums of a pool of threads.

require 'socket'

mistakes = asked = ticks = sums = 0
numbers = Fiber.new { (1..).each { |number| Fiber.yield number } }
odd = Enumerator.new { |found| (0..).each { |number| found << number * 2 + 1 } }
work = SizedQueue.new(10)
done = Mutex.new
3.times do
  Thread.new do
    loop do
      number = work.pop
      good = (1..number).reduce(:+) == number * (number + 1) / 2
      done.synchronize { sums += 1; mistakes += 1 unless good }
    end
  end
end
Thread.new { (100..).each { |number| work << number % 1000 + 1 } }
Thread.new { loop { sleep 0.005; ticks += 1 } }

server = TCPServer.new('127.0.0.1', ARGV[0].to_i)
loop do
  client = server.accept
  while (line = client.gets) && line.strip != ''; end
  asked += 1
  client.write "HTTP/1.0 200 OK\r\n\r\n#{mistakes} #{asked} #{numbers.resume} #{odd.next} #{ticks} #{sums}"
  client.close
end
