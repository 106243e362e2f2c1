package hapax.peers;

import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.atomic.AtomicReference;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.Producer;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.TopicExistsException;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * Creates a topic and fills it with messages whose tokens are all different.
 *
 * <p>Each message has a key, a JSON payload of an exact size that also holds the token, the token in
 * the header {@code idempotency-key}, and a timestamp. The timestamps rise evenly over a span that
 * ends now, so that a window over them has as many live segments as it would have in service.
 * Tokens are a bijection of the message's number and the seed: unique by construction, not by luck,
 * and not sorted.
 *
 * <pre>
 * --brokers B --topic T --messages N
 * --partitions 4         --payload-bytes 200   --span-hours 20
 * --token-chars 36       16 to 32: that many hex digits; 36: a UUID of version 4
 * --keys 100000          number of different keys; the key decides the partition
 * --seed 1               another seed gives other tokens
 * --again                append to a topic that exists: the same tokens once more, each in its partition
 * </pre>
 */
public final class Load {
    private static final byte[] HEX = "0123456789abcdef".getBytes(StandardCharsets.US_ASCII);

    private Load() { }

    public static void main(String[] argv) throws Exception {
        try {
            run(new Args(
                    argv,
                    Set.of("brokers", "topic", "messages", "partitions", "payload-bytes", "span-hours",
                            "token-chars", "keys", "seed"),
                    Set.of("again")));
        } catch (IllegalArgumentException e) {
            System.err.println("load: " + e.getMessage());
            System.exit(2);
        }
    }

    private static void run(Args args) throws Exception {
        String brokers = args.text("brokers");
        String topic = args.text("topic");
        long messages = args.count("messages");
        int partitions = args.small("partitions", 4);
        int payloadBytes = args.small("payload-bytes", 200);
        long spanMillis = Duration.ofHours(args.count("span-hours", 20)).toMillis();
        int tokenChars = args.small("token-chars", 36);
        long keys = args.count("keys", 100_000);
        long seed = args.count("seed", 1);
        if (tokenChars != 36 && (tokenChars < 16 || tokenChars > 32)) {
            throw new IllegalArgumentException("--token-chars " + tokenChars + ": expected 16 to 32, or 36");
        }

        if (!args.has("again")) {
            create(brokers, topic, partitions);
        }
        // Asking waits until every partition has a leader that knows it: the producer does not repeat what one refuses.
        long before = stored(brokers, topic, partitions);
        AtomicReference<Exception> failure = new AtomicReference<>();
        long endMillis = System.currentTimeMillis();
        long startNanos = System.nanoTime();
        try (Producer<byte[], byte[]> producer = producer(brokers)) {
            for (long i = 0; i < messages && failure.get() == null; i++) {
                byte[] token = token(seed, i, tokenChars);
                byte[] key = ("key-" + Long.remainderUnsigned(mix(i), keys)).getBytes(StandardCharsets.US_ASCII);
                // From the far end of the span up to now; double arithmetic keeps N * span from overflowing.
                long time = endMillis - (long) ((double) spanMillis * (messages - 1 - i) / messages);
                ProducerRecord<byte[], byte[]> message =
                        new ProducerRecord<>(topic, null, time, key, payload(token, i, payloadBytes));
                message.headers().add(FirstOnly.HEADER, token);
                producer.send(message, (metadata, error) -> {
                    if (error != null) {
                        failure.compareAndSet(null, error);
                    }
                });
            }
        }
        double seconds = (System.nanoTime() - startNanos) / 1e9;
        if (failure.get() != null) {
            throw failure.get();
        }
        long stored = stored(brokers, topic, partitions) - before;
        if (stored != messages) {
            throw new IllegalStateException(messages + " messages sent, but the topic holds " + stored + " of them");
        }
        System.out.printf(Locale.ROOT, "load %s messages %d seconds %.3f rate %.0f%n",
                topic, messages, seconds, messages / seconds);
    }

    private static void create(String brokers, String topic, int partitions) throws Exception {
        // Timestamps in the past must not make the broker delete what was just written.
        NewTopic wanted = new NewTopic(topic, Optional.of(partitions), Optional.empty())
                .configs(Map.of("retention.ms", "-1", "retention.bytes", "-1", "cleanup.policy", "delete"));
        try (Admin admin = Admin.create(Map.of("bootstrap.servers", brokers))) {
            admin.createTopics(List.of(wanted)).all().get();
        } catch (ExecutionException e) {
            if (e.getCause() instanceof TopicExistsException) {
                throw new IllegalArgumentException("topic " + topic + " exists; take another name or delete it");
            }
            throw e;
        }
    }

    private static Producer<byte[], byte[]> producer(String brokers) {
        Map<String, Object> config = new HashMap<>();
        config.put(ProducerConfig.BOOTSTRAP_SERVERS_CONFIG, brokers);
        config.put(ProducerConfig.ACKS_CONFIG, "1");
        config.put(ProducerConfig.ENABLE_IDEMPOTENCE_CONFIG, false);
        // Without idempotence a retry could repeat a message; a load that failed is run again instead.
        config.put(ProducerConfig.RETRIES_CONFIG, 0);
        config.put(ProducerConfig.COMPRESSION_TYPE_CONFIG, "lz4");
        config.put(ProducerConfig.LINGER_MS_CONFIG, 20);
        config.put(ProducerConfig.BATCH_SIZE_CONFIG, 256 * 1024);
        config.put(ProducerConfig.BUFFER_MEMORY_CONFIG, 64L * 1024 * 1024);
        return new KafkaProducer<>(config, new ByteArraySerializer(), new ByteArraySerializer());
    }

    private static long stored(String brokers, String topic, int partitions) throws Exception {
        Map<TopicPartition, OffsetSpec> ends = new HashMap<>();
        for (int partition = 0; partition < partitions; partition++) {
            ends.put(new TopicPartition(topic, partition), OffsetSpec.latest());
        }
        try (Admin admin = Admin.create(Map.of("bootstrap.servers", brokers))) {
            return admin.listOffsets(ends).all().get().values().stream().mapToLong(end -> end.offset()).sum();
        }
    }

    /** Hex digits of two mixed words. The first word alone is different for each number. */
    static byte[] token(long seed, long number, int chars) {
        long high = mix(number + (seed << 40));
        long low = mix(high ^ seed);
        byte[] digits = new byte[32];
        hex(high, digits, 0);
        hex(low, digits, 16);
        byte[] token = new byte[chars];
        if (chars < 36) {
            System.arraycopy(digits, 0, token, 0, chars);
            return token;
        }
        for (int from = 0, to = 0; to < chars; to++) {
            switch (to) {
                case 8, 13, 18, 23 -> token[to] = '-';
                // Version 4, variant 8: random digits there would now and then read as a UUID that holds a time.
                case 14 -> token[to] = '4';
                case 19 -> token[to] = '8';
                default -> token[to] = digits[from++];
            }
        }
        return token;
    }

    /** A JSON object of exactly {@code size} bytes, or of the smallest possible size above it. */
    static byte[] payload(byte[] token, long number, int size) {
        StringBuilder json = new StringBuilder(Math.max(size, 96));
        json.append("{\"number\":").append(number)
                .append(",\"token\":\"").append(new String(token, StandardCharsets.US_ASCII))
                .append("\",\"note\":\"");
        // Half random digits, half spaces: text that compresses about as well as real messages do.
        for (long word = number; json.length() < size - 2; word += 0x5851F42D4C957F2DL) {
            String digits = Long.toHexString(mix(word ^ 0x2545F4914F6CDD1DL)) + "                ";
            json.append(digits, 0, Math.min(digits.length(), size - 2 - json.length()));
        }
        return json.append("\"}").toString().getBytes(StandardCharsets.US_ASCII);
    }

    private static void hex(long word, byte[] into, int at) {
        for (int i = 0; i < 16; i++) {
            into[at + i] = HEX[(int) (word >>> (60 - 4 * i)) & 15];
        }
    }

    /** A well-mixing bijection on 64 bits: two rounds of xor-shift and multiplication by an odd number. */
    private static long mix(long x) {
        x = (x ^ (x >>> 32)) * 0xD6E8FEB86659FD93L;
        x = (x ^ (x >>> 32)) * 0xD6E8FEB86659FD93L;
        return x ^ (x >>> 32);
    }
}
