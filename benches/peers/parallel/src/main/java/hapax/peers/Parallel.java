package hapax.peers;

import io.confluent.parallelconsumer.ParallelConsumerOptions;
import io.confluent.parallelconsumer.ParallelConsumerOptions.CommitMode;
import io.confluent.parallelconsumer.ParallelConsumerOptions.ProcessingOrder;
import io.confluent.parallelconsumer.ParallelStreamProcessor;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.LongAdder;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.StringDeserializer;

/**
 * Consumes a topic with Confluent's Parallel Consumer, ordered by key, with a function that sleeps.
 *
 * <p>The time runs from the first call of the function to the end of the last one. How long a call really took is measured
 * inside it, so that the sleep's own inaccuracy counts against nobody. Afterwards the committed offsets are read back.
 *
 * <pre>
 * --brokers B --topic T --messages N --slots S --sleep-ms M
 * </pre>
 */
public final class Parallel {
    private static final Duration SILENCE_MAX = Duration.ofSeconds(60);

    private Parallel() { }

    public static void main(String[] argv) throws Exception {
        Map<String, String> args = new HashMap<>();
        for (int i = 0; i + 1 < argv.length; i += 2) {
            args.put(argv[i], argv[i + 1]);
        }
        String brokers = required(args, "--brokers");
        String topic = required(args, "--topic");
        long messages = Long.parseLong(required(args, "--messages"));
        int slots = Integer.parseInt(required(args, "--slots"));
        long sleepMillis = Long.parseLong(required(args, "--sleep-ms"));
        String group = "peers-parallel-" + System.currentTimeMillis() + "-" + ProcessHandle.current().pid();

        AtomicLong begun = new AtomicLong();
        AtomicLong ended = new AtomicLong();
        LongAdder inside = new LongAdder();
        AtomicLong firstNanos = new AtomicLong();
        AtomicLong lastNanos = new AtomicLong();
        CountDownLatch all = new CountDownLatch(1);

        ParallelConsumerOptions<String, byte[]> options = ParallelConsumerOptions.<String, byte[]>builder()
                .consumer(new KafkaConsumer<>(consumer(brokers, group)))
                .ordering(ProcessingOrder.KEY)
                .maxConcurrency(slots)
                .commitMode(CommitMode.PERIODIC_CONSUMER_ASYNCHRONOUS)
                .build();
        ParallelStreamProcessor<String, byte[]> processor = ParallelStreamProcessor.createEosStreamProcessor(options);
        processor.subscribe(List.of(topic));
        processor.poll(context -> {
            long start = System.nanoTime();
            if (begun.getAndIncrement() == 0) {
                firstNanos.set(start);
            }
            if (sleepMillis > 0) {
                sleep(sleepMillis);
            }
            long end = System.nanoTime();
            inside.add(end - start);
            if (ended.incrementAndGet() == messages) {
                lastNanos.set(end);
                all.countDown();
            }
        });
        long seen = -1;
        long moved = System.nanoTime();
        while (!all.await(200, TimeUnit.MILLISECONDS)) {
            if (ended.get() != seen) {
                seen = ended.get();
                moved = System.nanoTime();
            } else if (System.nanoTime() - moved > SILENCE_MAX.toNanos()) {
                throw new IllegalStateException("no call for " + SILENCE_MAX + " after " + seen + " of " + messages);
            }
        }
        processor.closeDrainFirst();

        long committed = committed(brokers, group);
        if (ended.get() != messages || committed != messages) {
            throw new IllegalStateException(
                    ended.get() + " calls, " + committed + " committed: both should be " + messages);
        }
        double seconds = (lastNanos.get() - firstNanos.get()) / 1e9;
        System.out.printf(Locale.ROOT, "parallel slots %d messages %d seconds %.3f handler_us %.1f rss_kb %d%n",
                slots, messages, seconds, inside.sum() / 1e3 / messages, peakRssKb());
        System.out.flush();
        // Its threads are daemons or not by version: the figure is out.
        System.exit(0);
    }

    private static void sleep(long millis) {
        try {
            Thread.sleep(millis);
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            throw new IllegalStateException(e);
        }
    }

    /** What is not set here is the default, on purpose. */
    private static Map<String, Object> consumer(String brokers, String group) {
        return Map.of(
                ConsumerConfig.BOOTSTRAP_SERVERS_CONFIG, brokers,
                ConsumerConfig.GROUP_ID_CONFIG, group,
                ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "earliest",
                ConsumerConfig.ENABLE_AUTO_COMMIT_CONFIG, false,
                ConsumerConfig.KEY_DESERIALIZER_CLASS_CONFIG, StringDeserializer.class,
                ConsumerConfig.VALUE_DESERIALIZER_CLASS_CONFIG, ByteArrayDeserializer.class);
    }

    private static long committed(String brokers, String group) throws Exception {
        try (Admin admin = Admin.create(Map.of("bootstrap.servers", brokers))) {
            return admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get().values().stream()
                    .mapToLong(OffsetAndMetadata::offset).sum();
        }
    }

    private static String required(Map<String, String> args, String name) {
        String value = args.get(name);
        if (value == null) {
            System.err.println("parallel: " + name + " is required");
            System.exit(2);
        }
        return value;
    }

    /** The peak resident set of this process as the kernel counts it; 0 where it does not say. */
    private static long peakRssKb() throws Exception {
        Path status = Path.of("/proc/self/status");
        if (!Files.isReadable(status)) {
            return 0;
        }
        return Files.readAllLines(status).stream()
                .filter(line -> line.startsWith("VmHWM:"))
                .mapToLong(line -> Long.parseLong(line.replaceAll("\\D", "")))
                .findFirst()
                .orElse(0);
    }
}
