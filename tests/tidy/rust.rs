//! Rust as text: without comments and literals, without unit tests, and the paths that it names.

/// The modules, as paths without an ending, that this file declares for tests only.
pub(crate) fn test_modules(path: &str, text: &str) -> Vec<String> {
    let folder = path
        .strip_suffix("/mod.rs")
        .or_else(|| path.strip_suffix("/lib.rs"))
        .unwrap_or(path.trim_end_matches(".rs"));
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let declared = lines
        .windows(2)
        .filter(|pair| pair[0].starts_with("#[cfg(test)") || pair[0].starts_with("#[cfg(all(test"));
    declared
        .filter_map(|pair| pair[1].rsplit_once("mod ")?.1.strip_suffix(';'))
        .map(|name| format!("{folder}/{name}"))
        .collect()
}

/// What comes before the unit tests at the end of a file: a module with a body, not one that lies in another file.
pub(crate) fn before_tests(text: &str) -> &str {
    let starts = text.match_indices("\n#[cfg(test)]\n");
    let end = starts
        .map(|(at, start)| (at, &text[at + start.len()..]))
        .find(|(_, rest)| {
            let line = rest.lines().next().unwrap_or_default();
            line.ends_with('{')
                && line
                    .trim_start_matches("pub(crate) ")
                    .trim_start_matches("pub(super) ")
                    .starts_with("mod ")
        });
    &text[..end.map_or(text.len(), |(at, _)| at)]
}

/// The text without comments and without what is inside literals; lines stay where they are.
pub(crate) fn code(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skip = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if first == '"' {
            literal(rest, 1)
        } else if rest.starts_with("r\"")
            || rest.starts_with("r#") && !out.ends_with(|c: char| c.is_alphanumeric() || c == '_')
        {
            raw(rest)
        } else if first == '\'' {
            character(rest)
        } else {
            0
        };
        let taken = if skip == 0 { first.len_utf8() } else { skip };
        if skip == 0 {
            out.push(first);
        } else {
            out.extend(rest[..taken].chars().filter(|c| *c == '\n'));
        }
        rest = &rest[taken..];
    }
    out
}

fn literal(rest: &str, start: usize) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(start) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

fn raw(rest: &str) -> usize {
    let hashes = rest[1..].chars().take_while(|c| *c == '#').count();
    if !rest[1 + hashes..].starts_with('"') {
        return 0;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    let body = 2 + hashes;
    rest[body..]
        .find(&end)
        .map_or(rest.len(), |at| body + at + end.len())
}

/// A character, or 0 where the quote begins a lifetime.
fn character(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some(_)) => rest[3..].find('\'').map_or(0, |at| at + 4),
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 0,
    }
}

pub(crate) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Every path that starts with `crate::`, with at most two segments after it; groups in braces are opened.
pub(crate) fn crate_paths(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if !code[..at].ends_with(|c: char| is_word(c) || c == ':') {
            let line = code[..at].lines().count().max(1);
            tree(&code[at + "crate::".len()..], "", &mut |path| {
                found.push((line, path))
            });
        }
    }
    found
}

/// One use tree; returns its length.
fn tree(text: &str, prefix: &str, found: &mut impl FnMut(String)) -> usize {
    let start = text.len() - text.trim_start().len();
    let body = &text[start..];
    if let Some(group) = body.strip_prefix('{') {
        let mut at = 0;
        while at < group.len() && !group[at..].trim_start().starts_with('}') {
            let skipped = group[at..].len() - group[at..].trim_start_matches([',', ' ', '\n', '\t']).len();
            let taken = tree(&group[at + skipped..], prefix, found);
            if taken + skipped == 0 {
                break;
            }
            at += skipped + taken;
        }
        return start
            + 1
            + group[at.min(group.len())..]
                .find('}')
                .map_or(group.len(), |end| at + end + 1);
    }
    let name: String = body.chars().take_while(|c| is_word(*c)).collect();
    let path = if prefix.is_empty() {
        name.clone()
    } else {
        format!("{prefix}::{name}")
    };
    let after = start + name.len();
    if text[after..].starts_with("::") && !name.is_empty() && path.matches("::").count() < 2 {
        return after + 2 + tree(&text[after + 2..], &path, found);
    }
    if !name.is_empty() {
        found(path);
    }
    // `as`, deeper segments and a star say nothing about the module.
    after + text[after..].find([',', '}', ';', '\n', '(', ' ']).unwrap_or(0)
}

#[test]
fn literals_and_comments_are_no_code() {
    let text = "a /* x */ b // c\n'\"' d \"e\\\"f\" r#\"g\"h\"# 'i: '\\'' j";
    assert_eq!(
        code(text).split_whitespace().collect::<Vec<_>>(),
        ["a", "b", "d", "'i:", "j"]
    );
}
