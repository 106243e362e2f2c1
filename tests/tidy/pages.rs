//! The rules for prose: words that promise no more than hapax does, and pages that name what exists.

use std::fs;
use std::path::Path;

use crate::rust::is_word;
use crate::{assert_none, files, over, pages, root};

/// The two words that hapax does not say of itself.
fn forbidden() -> String {
    ["exactly", "once"].join(" ")
}

/// Paragraph by paragraph, so that a line break hides nothing. In quotes and denied it may stand.
fn overpromises(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for paragraph in text.split("\n\n") {
        let bare: Vec<&str> = paragraph
            .split_whitespace()
            .filter(|word| !["//", "///", "//!", "#", ">", "*"].contains(word))
            .collect();
        let flat = bare
            .join(" ")
            .to_lowercase()
            .replace("exactly-once", &forbidden());
        for (at, phrase) in flat.match_indices(&forbidden()) {
            let quoted =
                flat[..at].ends_with(['"', '“']) && flat[at + phrase.len()..].starts_with(['"', '”']);
            let denied = flat[..at].split(['.', ';']).next_back().is_some_and(|before| {
                before
                    .split(' ')
                    .map(|word| word.trim_matches(|c: char| !c.is_alphabetic()))
                    .any(|word| ["not", "never", "no", "nothing", "without"].contains(&word))
            });
            if !(quoted && denied) {
                let near: String = flat[..at].chars().rev().take(40).collect();
                let near: String = near.chars().rev().collect();
                found.push(format!(
                    "{path}: …{near}{phrase}: say what is recorded at most once, and where the limits are"
                ));
            }
        }
    }
    found
}

/// The files that a page's section `File map` names in back-quotes and that do not exist.
fn missing_files(path: &str, text: &str, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let Some((_, map)) = text.split_once("## File map") else {
        return Vec::new();
    };
    let map = map.split("\n## ").next().unwrap_or_default();
    let named = map
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|name| name.contains('/') || name.contains('.'));
    named
        .filter(|name| !exists(name.trim_end_matches('/')))
        .map(|name| format!("{path}: the file map names {name}, which does not exist"))
        .collect()
}

/// The text without its fenced blocks, and those blocks.
fn fences(text: &str) -> (String, String) {
    let (mut prose, mut blocks, mut inside) = (String::new(), String::new(), false);
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else {
            let to = if inside { &mut blocks } else { &mut prose };
            to.push_str(line);
            to.push('\n');
        }
    }
    (prose, blocks)
}

/// The named crash points that a page does not mention.
fn crash_points(path: &str, text: &str, points: &[&str]) -> Vec<String> {
    let missing = points.iter().filter(|point| !text.contains(**point));
    missing
        .map(|point| format!("{path} does not say what the crash point {point} is"))
        .collect()
}

/// The names in the list of `src/crash.rs`.
fn points(source: &str) -> Vec<&str> {
    let list = source
        .split_once("POINTS: &[&str] = &[")
        .map_or("", |(_, rest)| rest);
    let list = list.split(']').next().unwrap_or_default();
    list.split('"').skip(1).step_by(2).collect()
}

/// Pairs such as "`src/a.rs`, `step`" whose file has no function of that name.
fn missing_functions(path: &str, text: &str, read: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let spans: Vec<&str> = text.split('`').collect();
    let pairs = spans
        .windows(3)
        .filter(|three| three[0].ends_with(".rs") && three[1] == ", ");
    pairs
        .filter(|three| !three[2].contains(['.', '/']))
        .filter(|three| !read(three[0]).is_some_and(|source| source.contains(&format!("fn {}(", three[2]))))
        .map(|three| format!("{path} names {} in {}, which is not there", three[2], three[0]))
        .collect()
}

/// What a heading is linked by.
fn slug(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    kept.chars()
        .filter(|c| is_word(*c) || *c == '-' || *c == ' ')
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

/// Links to files and headings that are not there. `read` gives a page's text, `Some("")` for another file.
fn broken_links(path: &str, text: &str, read: impl Fn(&Path) -> Option<String>) -> Vec<String> {
    let (prose, _) = fences(text);
    let targets = prose
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target);
    let folder = Path::new(path).parent().unwrap_or(Path::new(""));
    let mut found = Vec::new();
    for target in targets.filter(|target| !target.contains("://") && !target.starts_with("mailto:")) {
        let (file, heading) = target
            .split_once('#')
            .map_or((target, None), |(file, heading)| (file, Some(heading)));
        let page = if file.is_empty() {
            Some(text.to_owned())
        } else {
            read(&folder.join(file))
        };
        let Some(page) = page else {
            found.push(format!("{path} links to {target}: there is no such file"));
            continue;
        };
        let (prose, _) = fences(&page);
        let headings = prose
            .lines()
            .filter(|line| line.starts_with('#'))
            .map(|line| slug(line.trim_start_matches('#')));
        if heading.is_some_and(|heading| !headings.into_iter().any(|slug| slug == heading)) {
            found.push(format!("{path} links to {target}: there is no such heading"));
        }
    }
    found
}

/// `make` targets in back-quotes and in fenced blocks that the Makefile does not have.
fn missing_targets(path: &str, text: &str, makefile: &str) -> Vec<String> {
    let (prose, blocks) = fences(text);
    let spans = prose.split('`').skip(1).step_by(2).chain(blocks.lines());
    let named = spans.filter_map(|span| {
        let mut words = span.trim().trim_start_matches("$ ").split_whitespace();
        words.next().filter(|first| *first == "make")?;
        words.find(|word| !word.contains('='))
    });
    named
        .filter(|target| target.chars().all(|c| is_word(c) || c == '-'))
        .filter(|target| {
            !makefile
                .lines()
                .any(|line| line.starts_with(&format!("{target}:")))
        })
        .map(|target| format!("{path} names `make {target}`, which the Makefile does not have"))
        .collect()
}

#[test]
fn nothing_promises_more_than_it_keeps() {
    let mut all = pages();
    let mut places = vec![
        "src",
        "tests",
        "benches",
        "examples",
        "compose",
        "scripts",
        "Cargo.toml",
        "Makefile",
    ];
    places.retain(|place| root().join(place).exists());
    all.extend(files(
        &places,
        &[".rs", ".toml", ".sh", ".py", ".yaml", ".yml", ".json", "Makefile"],
    ));
    // The rule itself has to say what it looks for.
    all.retain(|(path, _)| path != "tests/tidy/pages.rs");
    assert_none(over(&all, overpromises));
}

#[test]
fn a_promise_of_too_much_is_found() {
    let said = forbidden();
    let broken = said.replace(' ', "\n/// ");
    for planted in [
        format!("hapax is {said}."),
        format!("Exactly-{}", "once delivery"),
        format!("/// runs {broken}"),
        format!("not here. \"{said}\""),
    ] {
        assert_eq!(overpromises("a.md", &planted).len(), 1, "{planted}");
    }
    for fine in [
        format!("It is **not** \"{said}\": it records."),
        "processing.guarantee=exactly_once_v2".to_owned(),
    ] {
        assert!(overpromises("a.md", &fine).is_empty(), "{fine}");
    }
}

#[test]
fn the_file_map_names_what_exists() {
    let pages = pages();
    assert!(
        pages.iter().any(|(_, text)| text.contains("## File map")),
        "no page has a file map"
    );
    assert_none(over(&pages, |path, text| {
        missing_files(path, text, |name| root().join(name).exists())
    }));
}

#[test]
fn a_file_map_with_a_file_that_is_gone_is_found() {
    let map = "## File map\n| `src/a.rs` | `word` |\n| `src/b/` | x |\n## Next\n`src/c.rs`";
    assert_eq!(missing_files("d.md", map, |name| name == "src/b").len(), 1);
}

#[test]
fn links_between_pages_resolve() {
    let read = |path: &Path| {
        let path = root().join(path);
        path.exists()
            .then(|| fs::read_to_string(path).unwrap_or_default())
    };
    assert_none(over(&pages(), |path, text| broken_links(path, text, read)));
}

#[test]
fn a_broken_link_is_found() {
    let read = |path: &Path| (path == Path::new("docs/b.md")).then(|| "# One `two` (three)\n".to_owned());
    let links = |text: &str| broken_links("docs/a.md", text, read).len();
    assert_eq!(
        links("[x](b.md) [x](b.md#one-two-three) [x](https://example.org)"),
        0
    );
    assert_eq!(links("[x](c.md)\n[x](b.md#four)\n[x](#here)"), 3);
    assert_eq!(links("```\n[x](c.md)\n```"), 0);
}

#[test]
fn every_make_target_in_the_docs_exists() {
    let makefile = fs::read_to_string(root().join("Makefile")).expect("the Makefile reads");
    assert_none(over(&pages(), |path, text| {
        missing_targets(path, text, &makefile)
    }));
}

#[test]
fn a_make_target_that_does_not_exist_is_found() {
    let makefile = "test: ## x\n\ndemo: setup\n";
    let targets = |text: &str| missing_targets("a.md", text, makefile).len();
    assert_eq!(
        targets("`make test` `CI=true make` make sure\n```\nmake demo\n$ make test ARGS=x\n```"),
        0
    );
    assert_eq!(targets("`make tset`\n```\nmake X=1 dmeo\n```"), 2);
}

#[test]
fn every_crash_point_is_explained() {
    let source = fs::read_to_string(root().join("src/crash.rs")).expect("the source reads");
    let points = points(&source);
    assert!(points.len() >= 10, "only {points:?} were read");
    let mut told = pages();
    told.retain(|(path, _)| ["README.md", "docs/design.md"].contains(&path.as_str()));
    assert_eq!(told.len(), 2);
    assert_none(over(&told, |path, text| crash_points(path, text, &points)));
}

#[test]
fn a_crash_point_that_no_page_explains_is_found() {
    let source = "pub const POINTS: &[&str] = &[\n    \"before-a\",\n    \"after-a\",\n];";
    assert_eq!(points(source), ["before-a", "after-a"]);
    assert_eq!(crash_points("a.md", "| `after-a` |", &points(source)).len(), 1);
}

#[test]
fn functions_that_the_pages_name_exist() {
    let read = |path: &str| fs::read_to_string(root().join(path)).ok();
    assert_none(over(&pages(), |path, text| missing_functions(path, text, read)));
}

#[test]
fn a_function_that_is_gone_is_found() {
    let read = |path: &str| (path == "src/a.rs").then(|| "fn step(x: u8) {}".to_owned());
    let found = |text: &str| missing_functions("d.md", text, read).len();
    assert_eq!(found("| `src/a.rs`, `step` | `src/a.rs`, `src/b.rs` |"), 0);
    assert_eq!(found("| `src/a.rs`, `stop` | `src/b.rs`, `step` |"), 2);
}
