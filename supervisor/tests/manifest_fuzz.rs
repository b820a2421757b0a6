//! What if the manifest is nonsense? It is refused or accepted, and every text can be rendered.

use proptest::prelude::*;
use supervisor::manifest::{EMBEDDED, Manifest, Origin};

fn load(text: &str, sets: &[String]) {
    if let Err(report) = Manifest::load(Origin::Text { name: "fuzz.toml", text }, sets) {
        assert!(!report.problems().is_empty());
        assert!(!report.render(false).is_empty());
        assert!(!report.render(true).is_empty());
        assert_eq!(report.facts().len(), report.problems().len());
    }
}

/// Words that lead deep into the checks, and some that must not.
fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("component".to_string()),
        Just("disk.disk".to_string()),
        Just("fs.fs".to_string()),
        Just("builtin:fs-server".to_string()),
        Just("config.listen".to_string()),
        Just("atoll.block/9".to_string()),
        Just("18446744073709551615TiB".to_string()),
        Just("[::1]:0".to_string()),
        Just("/../\u{0}".to_string()),
        "\\PC{0,12}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_text_is_answered(text in "(\\PC|\n|\t|\r){0,400}", set in "\\PC{0,40}") {
        load(&text, &[set]);
    }

    #[test]
    fn any_change_of_a_good_manifest_is_answered(
        changes in prop::collection::vec((0usize..EMBEDDED.len(), 0usize..12, word()), 1..4),
        set in (word(), word(), word()),
    ) {
        let mut text = EMBEDDED.to_string();
        for (at, removed, inserted) in changes {
            let at = (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            let end = (at + removed).min(text.len());
            let end = (end..=text.len()).find(|end| text.is_char_boundary(*end)).unwrap_or(text.len());
            text.replace_range(at..end, &inserted);
        }
        load(&text, &[format!("{}.{}={}", set.0, set.1, set.2)]);
    }

    #[test]
    fn any_line_replaced_by_another_is_answered(from in 0usize..21, to in 0usize..21, value in word()) {
        let mut lines: Vec<String> = EMBEDDED.lines().map(str::to_string).collect();
        lines[to] = lines[from].clone();
        load(&lines.join("\n"), &[]);
        lines[to] = format!("uses.disk = {{ from = {value:?}, rights = [{value:?}], path = {value:?} }}");
        load(&lines.join("\n"), &[]);
        lines[to] = format!("config = {{ listen = {value:?}, size = {value:?} }}");
        load(&lines.join("\n"), &[]);
    }
}
