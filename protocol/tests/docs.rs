//! The page of each interface in `docs/` says what its description says: operations, on what, with which rights, how they are
//! repeated, how long they wait, what they take, and how they fail.

use std::collections::BTreeMap;
use std::time::Duration;

use kernel_ipc::described::{Interface, Operation};
use protocol::INTERFACES;

/// The cells of a row of a table.
fn cells(line: &str) -> Vec<String> {
    line.trim().trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect()
}

/// The table of operations: for each number, what stands in each column.
fn table(page: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut lines = page.lines().skip_while(|line| !line.starts_with("| | operation |"));
    let head = cells(lines.next().expect("there is a table of operations"));
    let rows = lines.skip(1).take_while(|line| line.starts_with('|')).map(cells);
    rows.map(|row| (row[0].clone(), head.iter().cloned().zip(row).collect())).collect()
}

/// What stands under `### 7 stat, 8 lookup`.
fn section<'p>(page: &'p str, operation: &Operation) -> &'p str {
    let wanted = format!("{} {}", operation.number, operation.name);
    let sections = page.split("\n### ").skip(1).filter_map(|section| section.split_once('\n'));
    let mut found = sections.filter(|(head, _)| head.split(", ").any(|name| name == wanted));
    let (_, text) = found.next().unwrap_or_else(|| panic!("there is no section {wanted}"));
    text.split("\n#").next().unwrap_or_default()
}

fn has_word(text: &str, word: &str) -> bool {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|other| other == word)
}

/// Rights as a page says them: those of the target, then those of handle arguments.
fn requires(operation: &Operation) -> String {
    let mut text = match operation.requires.as_slice() {
        [] => "–".to_owned(),
        rights => rights.join(", "),
    };
    for argument in &operation.arguments {
        if let kernel_ipc::described::Type::Handle { requires, .. } = &argument.ty {
            text += &format!("; of {}: {}", argument.name, requires.join(", "));
        }
    }
    text
}

#[test]
fn each_page_says_what_the_description_says() {
    for known in &INTERFACES {
        let interface = Interface::of(known.description);
        let word = interface.family().rsplit('.').next().expect("a family has a last word");
        let path = format!("{}/../docs/interface-{word}.md", env!("CARGO_MANIFEST_DIR"));
        let page = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(page.starts_with(&format!("# {}: ", interface.name)), "{path}");
        for kind in &interface.kinds {
            assert!(page.contains(&format!("**{}**", kind.name)), "{path}: {}", kind.name);
        }
        for right in &interface.rights {
            assert!(page.contains(&format!("`{}`", right.name)), "{path}: {}", right.name);
        }

        let table = table(&page);
        let numbers: Vec<String> = interface.operations.iter().map(|operation| operation.number.to_string()).collect();
        let mut listed: Vec<&String> = table.keys().collect();
        listed.sort_by_key(|number| number.parse::<u16>().ok());
        assert_eq!(listed, numbers.iter().collect::<Vec<_>>(), "{path}");
        let mut unsaid_at_all = Vec::new();
        for operation in &interface.operations {
            let row = &table[&operation.number.to_string()];
            let deadline = operation.deadline_ns.map(Duration::from_nanos);
            let retry = serde_json::to_value(operation.retry).expect("a word");
            for (column, expected) in [
                ("operation", operation.name.clone()),
                ("on", operation.target.kind.clone()),
                ("requires", requires(operation)),
                ("retry", retry.as_str().expect("a word").into()),
                ("deadline", deadline.map_or("none".into(), |deadline| format!("{} s", deadline.as_secs_f64()))),
            ] {
                // A page leaves out a column that is the same in all rows.
                if let Some(said) = row.get(column) {
                    assert_eq!(*said, expected, "{path}: {}", operation.name);
                }
            }
            unsaid_at_all.extend(unsaid(&interface, operation, section(&page, operation)));
        }
        assert_eq!(unsaid_at_all, [""; 0], "{path}");
    }
}

/// What the section of an operation does not name: arguments, and numbers of errors.
fn unsaid(interface: &Interface, operation: &Operation, section: &str) -> Vec<String> {
    let of = |what: &str| format!("{} does not name {what}", operation.name);
    let arguments = operation.arguments.iter().filter(|argument| !has_word(section, &argument.name));
    let mut unsaid: Vec<String> = arguments.map(|argument| of(&argument.name)).collect();
    let (_, failure) = section.split_once("**On failure**").unwrap_or_default();
    // As for another operation, or never.
    if !failure.trim_start().starts_with("as ") && failure.trim() != "never." {
        let errors = interface.errors[&operation.error].iter();
        let errors = errors.filter(|error| !has_word(failure, &error.number.to_string()));
        unsaid.extend(errors.map(|error| of(&format!("error {} {}", error.number, error.name))));
    }
    unsaid
}
