package hapax.peers;

import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Set;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.processor.api.ContextualFixedKeyProcessor;
import org.apache.kafka.streams.processor.api.FixedKeyProcessor;
import org.apache.kafka.streams.processor.api.FixedKeyProcessorContext;
import org.apache.kafka.streams.processor.api.FixedKeyProcessorSupplier;
import org.apache.kafka.streams.processor.api.FixedKeyRecord;
import org.apache.kafka.streams.state.StoreBuilder;
import org.apache.kafka.streams.state.Stores;
import org.apache.kafka.streams.state.WindowStore;
import org.apache.kafka.streams.state.WindowStoreIterator;

/**
 * Forwards the first message that carries a token within the window and drops the others.
 *
 * <p>The store maps a token to the time of its first message. It is persistent (RocksDB), keeps
 * entries for one window, is not cached, and has the changelog topic that Kafka Streams gives a
 * store unless told otherwise.
 */
final class FirstOnly implements FixedKeyProcessorSupplier<byte[], byte[], byte[]> {
    static final String STORE = "seen";
    static final String HEADER = "idempotency-key";

    private final Duration window;
    private final Probe probe;

    /** Told when each message goes in, before its look-up, and when it has been dealt with. */
    interface Probe {
        void enter();

        void leave();
    }

    FirstOnly(Duration window, Probe probe) {
        this.window = window;
        this.probe = probe;
    }

    @Override
    public FixedKeyProcessor<byte[], byte[], byte[]> get() {
        return new Task();
    }

    @Override
    public Set<StoreBuilder<?>> stores() {
        return Set.of(Stores.windowStoreBuilder(
                Stores.persistentWindowStore(STORE, window, window, false), Serdes.String(), Serdes.Long()));
    }

    private final class Task extends ContextualFixedKeyProcessor<byte[], byte[], byte[]> {
        private final long reach = window.toMillis();
        private WindowStore<String, Long> seen;

        @Override
        public void init(FixedKeyProcessorContext<byte[], byte[]> context) {
            super.init(context);
            seen = context.getStateStore(STORE);
        }

        @Override
        public void process(FixedKeyRecord<byte[], byte[]> message) {
            probe.enter();
            judge(message);
            probe.leave();
        }

        private void judge(FixedKeyRecord<byte[], byte[]> message) {
            Header header = message.headers().lastHeader(HEADER);
            if (header == null || header.value() == null) {
                context().forward(message);
                return;
            }
            String token = new String(header.value(), StandardCharsets.UTF_8);
            long time = message.timestamp();
            if (!seenNear(token, time)) {
                seen.put(token, time, time);
                context().forward(message);
            }
        }

        private boolean seenNear(String token, long time) {
            try (WindowStoreIterator<Long> hits = seen.fetch(token, Math.max(0, time - reach), time + reach)) {
                return hits.hasNext();
            }
        }
    }
}
