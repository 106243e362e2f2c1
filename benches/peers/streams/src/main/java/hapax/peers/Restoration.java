package hapax.peers;

import java.util.HashSet;
import java.util.Set;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.streams.processor.StateRestoreListener;

/**
 * Times the restoration of one store: from the first partition that starts to the last that ends.
 *
 * <p>A partition may move between stream threads while the group settles; its restoration is then
 * suspended and started again, which counts as time, and its entries count once each as they are
 * restored. Called by several threads.
 */
final class Restoration implements StateRestoreListener {
    private final int partitions;
    private final Set<TopicPartition> ended = new HashSet<>();
    private final AtomicLong entries = new AtomicLong();
    private final CountDownLatch done = new CountDownLatch(1);
    private boolean started;
    private long startNanos;
    private long endNanos;

    Restoration(int partitions) {
        this.partitions = partitions;
    }

    CountDownLatch done() {
        return done;
    }

    AtomicLong entries() {
        return entries;
    }

    synchronized long nanos() {
        return endNanos - startNanos;
    }

    @Override
    public synchronized void onRestoreStart(TopicPartition partition, String store, long from, long to) {
        if (!started) {
            started = true;
            startNanos = System.nanoTime();
        }
    }

    @Override
    public void onBatchRestored(TopicPartition partition, String store, long batchEnd, long count) {
        entries.addAndGet(count);
    }

    @Override
    public synchronized void onRestoreEnd(TopicPartition partition, String store, long total) {
        ended.add(partition);
        if (ended.size() == partitions) {
            endNanos = System.nanoTime();
            done.countDown();
        }
    }
}
