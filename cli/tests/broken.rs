//! The broken copies that the proof has to catch (`cli/tests/broken/run`) can still be made: each patch changes what is there, and
//! `docs/proof.md` says what became of it.

use std::path::Path;

/// Lines that a patch may change: it breaks one rule, and no more.
const CHANGED_MAX: usize = 8;

/// What a patch finds and what it leaves, of each file.
struct Hunk {
    file: String,
    before: String,
    changed: usize,
}

fn hunks(patch: &str) -> Vec<Hunk> {
    let (mut hunks, mut file) = (Vec::<Hunk>::new(), String::new());
    for line in patch.lines().skip_while(|line| !line.starts_with("--- ")) {
        if line.starts_with("--- ") {
            continue;
        }
        if let Some(name) = line.strip_prefix("+++ b/") {
            file = name.to_owned();
        } else if line.starts_with("@@") {
            hunks.push(Hunk { file: file.clone(), before: String::new(), changed: 0 });
        } else if let Some(hunk) = hunks.last_mut() {
            hunk.changed += usize::from(!line.starts_with(' ') && !line.is_empty());
            if !line.starts_with('+') {
                hunk.before += line.get(1..).unwrap_or_default();
                hunk.before.push('\n');
            }
        }
    }
    hunks
}

#[test]
fn every_broken_copy_can_be_made_and_the_page_says_what_caught_it() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("it is in a workspace");
    let page = std::fs::read_to_string(workspace.join("docs/proof.md")).expect("the page is there");
    let mut count = 0;
    for entry in std::fs::read_dir(workspace.join("cli/tests/broken")).expect("patches") {
        let path = entry.expect("readable").path();
        if path.extension().is_none_or(|extension| extension != "patch") {
            continue;
        }
        let name = path.file_stem().expect("it has a name").to_string_lossy().into_owned();
        let patch = std::fs::read_to_string(&path).expect("text");
        assert!(
            patch.starts_with("Rule: ") && patch.contains("\nHere: "),
            "{name}: says which rule, and how it is broken"
        );
        let hunks = hunks(&patch);
        assert!(!hunks.is_empty(), "{name}: changes nothing");
        for hunk in &hunks {
            let source = std::fs::read_to_string(workspace.join(&hunk.file)).expect("a file of the sources");
            assert_eq!(
                source.matches(&hunk.before).count(),
                1,
                "{name}: {} has no such lines:\n{}",
                hunk.file,
                hunk.before
            );
        }
        let changed: usize = hunks.iter().map(|hunk| hunk.changed).sum();
        assert!((1..=CHANGED_MAX).contains(&changed), "{name}: {changed} lines");
        assert!(page.contains(&format!("| `{name}` |")), "docs/proof.md does not say what caught {name}");
        count += 1;
    }
    assert!(count >= 5, "{count} broken copies");
}
