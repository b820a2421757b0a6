//! What another manifest changes of a system that runs. No processes, no clocks.
//!
//! - A component is restarted if anything has changed that a run is told when it begins: `run`, `config`, `uses`, `provides`,
//!   `reactors`, `refuse_after_ms`. What only the supervisor goes by (`restart`, `group`, `hung_after_seconds`) changes while it runs.
//! - One that survives begins anew when it is restarted so: what it has kept was kept under the manifest before. Those that use it, directly
//!   or through others, hold what was its, and are restarted too.
//! - Whoever is restarted takes along what it takes along at a death, by the manifest before and by the new one.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::manifest::{Checked, Component};
use crate::ties::Ties;

/// What becomes of a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    Unchanged,
    /// It goes on, under other rules. Which.
    Adjusted(String),
    /// It ends and is started again.
    Restarted {
        /// Why.
        why: String,
        /// What it runs is another program by the manifest, whatever it was upgraded to.
        runs_other: bool,
    },
    /// It is started.
    Added,
    /// It ends.
    Removed,
}

impl Change {
    /// Whether a run ends by it.
    pub fn ends_a_run(&self) -> bool {
        matches!(self, Change::Restarted { .. } | Change::Removed)
    }
}

/// What becomes of each component, in the order of the new manifest, and then of those that are removed.
///
/// # Errors
/// For people: what cannot be changed while a system runs.
pub fn changes(old: &Checked, new: &Checked, survives: impl Fn(&str) -> bool) -> Result<Vec<(String, Change)>, String> {
    if old.system != new.system {
        return Err(format!("the system is called {}, and cannot be called {} while it runs", old.system, new.system));
    }
    let is_placed = |component: &Component| component.node.is_some();
    if old.components.iter().chain(&new.components).any(is_placed) {
        return Err("its components have places on nodes, and those are not changed while it runs".into());
    }
    let mut restarted: BTreeMap<usize, String> = BTreeMap::new();
    let (ties, later) = (Ties::of(&old.components), Ties::of(&new.components));
    let position = |of: &Checked, name: &str| of.components.iter().position(|component| component.name == name);
    let mut unseen = Vec::new();
    for (index, component) in old.components.iter().enumerate() {
        let Some(then) = find(new, &component.name) else { continue };
        let fields = told_at_its_start(component, then);
        if !fields.is_empty() {
            restarted.insert(index, format!("{} changed", fields.join(", ")));
            unseen.push(index);
        }
    }
    while let Some(index) = unseen.pop() {
        let name = &old.components[index].name;
        let mut takes_along = |other: usize, why: String| {
            // What is removed ends anyway.
            let stays = find(new, &old.components[other].name).is_some();
            if stays && !restarted.contains_key(&other) {
                restarted.insert(other, why);
                unseen.push(other);
            }
        };
        if survives(name) {
            let users = (0..old.components.len()).filter(|&other| ties.uses(other, index));
            users.for_each(|other| takes_along(other, format!("it uses {name}, which begins anew")));
        }
        for &other in ties.together(index) {
            takes_along(other, format!("it is restarted with {name}"));
        }
        for &other in position(new, name).map_or(&[][..], |then| later.together(then)) {
            if let Some(before) = position(old, &new.components[other].name) {
                takes_along(before, format!("it is restarted with {name}"));
            }
        }
    }
    let of_new = new.components.iter().map(|component| {
        let change = match position(old, &component.name) {
            None => Change::Added,
            Some(index) => match restarted.remove(&index) {
                Some(why) => Change::Restarted { why, runs_other: old.components[index].run != component.run },
                None => adjusted(&old.components[index], component),
            },
        };
        (component.name.clone(), change)
    });
    let mut all: Vec<(String, Change)> = of_new.collect();
    let removed = old.components.iter().filter(|component| find(new, &component.name).is_none());
    all.extend(removed.map(|component| (component.name.clone(), Change::Removed)));
    Ok(all)
}

fn find<'c>(of: &'c Checked, name: &str) -> Option<&'c Component> {
    of.components.iter().find(|component| component.name == name)
}

/// What has changed of that which a run is told when it begins.
fn told_at_its_start(old: &Component, new: &Component) -> Vec<String> {
    let mut fields = Vec::new();
    let mut field = |name: &str, is_changed: bool| is_changed.then(|| fields.push(format!("`{name}`")));
    field("run", old.run != new.run);
    let empty = serde_json::Map::new();
    let keys = |config: &Value| config.as_object().unwrap_or(&empty).clone();
    let (before, then) = (keys(&old.config), keys(&new.config));
    let mut names: Vec<&String> = before.keys().chain(then.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        field(&format!("config.{name}"), before.get(name) != then.get(name));
    }
    field("uses", old.uses != new.uses);
    field("provides", old.provides != new.provides);
    field("reactors", old.reactors != new.reactors);
    field("refuse_after_ms", old.refuse_after_ms != new.refuse_after_ms);
    fields
}

fn adjusted(old: &Component, new: &Component) -> Change {
    let fields = [
        ("`restart`", old.restart != new.restart),
        ("`group`", old.group != new.group),
        ("`hung_after_seconds`", old.hung_after_seconds != new.hung_after_seconds),
    ];
    let changed: Vec<&str> = fields.iter().filter(|(_, is_changed)| *is_changed).map(|(name, _)| *name).collect();
    match changed.as_slice() {
        [] => Change::Unchanged,
        changed => Change::Adjusted(format!("{} changed", changed.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{EMBEDDED, Manifest, Origin};

    fn checked(text: &str) -> Checked {
        Manifest::load(Origin::Text { name: "test", text }, &[]).unwrap_or_else(|report| panic!("{report}"))
    }

    /// What becomes of the built-in system when these pieces of its manifest are replaced, as lines.
    fn replaced(pieces: &[(&str, &str)], surviving: &[&str]) -> Vec<String> {
        let text = pieces.iter().fold(EMBEDDED.to_owned(), |text, (from, to)| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        });
        between(EMBEDDED, &text, surviving)
    }

    fn between(old: &str, new: &str, surviving: &[&str]) -> Vec<String> {
        let all = changes(&checked(old), &checked(new), |name| surviving.contains(&name)).expect("it can be changed");
        let line = |(name, change): (String, Change)| match change {
            Change::Unchanged => name,
            Change::Adjusted(why) => format!("{name}: adjusted, {why}"),
            Change::Restarted { why, .. } => format!("{name}: restarted, {why}"),
            Change::Added => format!("{name}: added"),
            Change::Removed => format!("{name}: removed"),
        };
        all.into_iter().map(line).collect()
    }

    const ALL: [&str; 3] = ["disk", "fs", "net"];

    #[test]
    fn what_has_not_changed_is_left_alone() {
        assert_eq!(replaced(&[("# The disk", "# A disk")], &ALL), ["disk", "fs", "net", "httpd"]);
        let rules = [("[component.net]", "[component.net]\nhung_after_seconds = 9")];
        let changed = ["disk", "fs", "net: adjusted, `hung_after_seconds` changed", "httpd"];
        assert_eq!(replaced(&rules, &ALL), changed);
        let one = replaced(&[("127.0.0.1:8080", "127.0.0.1:8081")], &ALL);
        // Its narrowing is of its configuration.
        assert_eq!(one, ["disk", "fs", "net", "httpd: restarted, `config.listen`, `uses` changed"]);
    }

    #[test]
    fn those_that_hold_what_begins_anew_are_restarted_with_it() {
        let cache = [("64MiB", "32MiB")];
        let user = "httpd: restarted, it uses fs, which begins anew";
        assert_eq!(replaced(&cache, &ALL), ["disk", "fs: restarted, `config.cache` changed", "net", user]);
        // Of one that keeps nothing its clients hold nothing.
        assert_eq!(replaced(&cache, &["disk"]), ["disk", "fs: restarted, `config.cache` changed", "net", "httpd"]);
        let all = replaced(&[("4GiB", "5GiB")], &ALL);
        assert_eq!(all.iter().filter(|line| line.ends_with("it uses disk, which begins anew")).count(), 3, "{all:?}");
    }

    #[test]
    fn what_is_tied_together_is_restarted_together_by_either_manifest() {
        let tied = EMBEDDED.replace("[component.net]", "[component.net]\nrestart = \"rest-for-one\"");
        let loose = EMBEDDED.replace("[component.net]", "[component.net]\nrefuse_after_ms = 50");
        let both = ["net: restarted, `refuse_after_ms` changed", "httpd: restarted, it is restarted with net"];
        assert_eq!(between(&tied, &loose, &[])[2..], both);
        let tied = loose.replace("[component.net]", "[component.net]\nrestart = \"rest-for-one\"");
        assert_eq!(between(EMBEDDED, &tied, &[])[2..], both);
    }

    #[test]
    fn what_comes_and_goes_is_said() {
        let more = EMBEDDED.to_owned() + "[component.null]\nrun = \"builtin:null\"\nprovides.null = \"atoll.null/1\"\n";
        assert_eq!(between(EMBEDDED, &more, &ALL)[..], ["disk", "fs", "net", "httpd", "null: added"]);
        assert_eq!(between(&more, EMBEDDED, &ALL)[4..], ["null: removed"]);
        // Whoever has used it says so no more: it has changed.
        let (less, _) = EMBEDDED.split_once("# The web server").expect("it is the last");
        assert_eq!(between(EMBEDDED, less, &ALL), ["disk", "fs", "net", "httpd: removed"]);
    }

    #[test]
    fn whether_it_is_another_program_is_known() {
        const NULL: &str = "atoll = 1\n[component.null]\nrun = \"builtin:null\"\nprovides.null = \"atoll.null/1\"\n";
        let runs_other = |new: &str| {
            let all = changes(&checked(NULL), &checked(new), |_| false).expect("it can be changed");
            match &all[0].1 {
                Change::Restarted { runs_other, .. } => *runs_other,
                other => panic!("{other:?}"),
            }
        };
        assert!(runs_other(&NULL.replace("builtin:null", "program:/bin/null")));
        assert!(!runs_other(&(NULL.to_owned() + "refuse_after_ms = 7\n")));
    }

    #[test]
    fn what_a_running_system_cannot_become_is_refused() {
        let other = checked(&EMBEDDED.replace("\"web\"", "\"other\""));
        let web = checked(EMBEDDED);
        assert!(changes(&web, &other, |_| false).is_err_and(|why| why.contains("cannot be called other")));
        let mut placed = web.clone();
        placed.components[0].node = Some("a".into());
        for (old, new) in [(&web, &placed), (&placed, &web)] {
            assert!(changes(old, new, |_| false).is_err_and(|why| why.contains("places")));
        }
    }
}
