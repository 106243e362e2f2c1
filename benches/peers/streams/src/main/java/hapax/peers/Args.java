package hapax.peers;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;

/** Command-line flags: {@code --name value}, and {@code --name} alone for switches. */
final class Args {
    private final Map<String, List<String>> values = new HashMap<>();

    Args(String[] argv, Set<String> valued, Set<String> switches) {
        for (int i = 0; i < argv.length; i++) {
            String name = argv[i].startsWith("--") ? argv[i].substring(2) : "";
            if (switches.contains(name)) {
                values.put(name, List.of());
            } else if (valued.contains(name) && i + 1 < argv.length) {
                values.computeIfAbsent(name, n -> new ArrayList<>()).add(argv[++i]);
            } else {
                throw new IllegalArgumentException(
                        valued.contains(name) ? argv[i] + " needs a value" : "unknown flag " + argv[i]);
            }
        }
    }

    boolean has(String name) {
        return values.containsKey(name);
    }

    /** Every value of a flag that may be repeated. */
    List<String> all(String name) {
        return values.getOrDefault(name, List.of());
    }

    String text(String name) {
        List<String> given = all(name);
        if (given.isEmpty()) {
            throw new IllegalArgumentException("--" + name + " is required");
        }
        return given.get(given.size() - 1);
    }

    String text(String name, String otherwise) {
        return has(name) ? text(name) : otherwise;
    }

    /** A whole number of at least one. */
    long count(String name) {
        String given = text(name);
        try {
            long n = Long.parseLong(given);
            if (n >= 1) {
                return n;
            }
        } catch (NumberFormatException e) {
            // Reported below, with the same words as a number out of range.
        }
        throw new IllegalArgumentException("--" + name + " " + given + ": expected a whole number of at least 1");
    }

    long count(String name, long otherwise) {
        return has(name) ? count(name) : otherwise;
    }

    /** Like {@link #count(String, long)}, for values that must fit an {@code int}. */
    int small(String name, int otherwise) {
        long n = count(name, otherwise);
        if (n > Integer.MAX_VALUE) {
            throw new IllegalArgumentException("--" + name + " " + n + " is too large");
        }
        return (int) n;
    }
}
