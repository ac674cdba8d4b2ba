// Answers with: mistakes, questions asked, ticks of a timer, blocks that became garbage.

import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.util.Arrays;
import java.util.concurrent.*;
import java.util.concurrent.atomic.AtomicLong;

public class Server {
    static final AtomicLong mistakes = new AtomicLong();
    static final AtomicLong asked = new AtomicLong();
    static final AtomicLong ticks = new AtomicLong();
    static final AtomicLong blocks = new AtomicLong();
    static final ConcurrentMap<Long, byte[]> kept = new ConcurrentHashMap<>();

    static void churn() {
        while (true) {
            long number = blocks.incrementAndGet();
            byte[] block = new byte[16384];
            Arrays.fill(block, (byte) number);
            byte[] old = kept.put(number % 256, block);
            if (old != null && (old[0] != (byte) (number - 256) || old[0] != old[old.length - 1])) {
                mistakes.incrementAndGet();
            }
        }
    }

    public static void main(String[] words) throws Exception {
        ScheduledExecutorService timer = Executors.newScheduledThreadPool(1);
        timer.scheduleAtFixedRate(ticks::incrementAndGet, 0, 5, TimeUnit.MILLISECONDS);
        Thread churner = new Thread(Server::churn);
        churner.setDaemon(true);
        churner.start();
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", Integer.parseInt(words[0])), 0);
        server.setExecutor(Executors.newFixedThreadPool(4));
        server.createContext("/", exchange -> {
            String text = mistakes + " " + asked.incrementAndGet() + " " + ticks + " " + blocks;
            exchange.sendResponseHeaders(200, text.length());
            exchange.getResponseBody().write(text.getBytes());
            exchange.close();
        });
        server.start();
    }
}
