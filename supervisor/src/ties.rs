//! Who is restarted with whom: what a manifest's `restart` and `group` come to. No processes, no clocks.
//!
//! - *One for one*, which is the default: nobody else is restarted.
//! - *Rest for one*: those that use it, directly or through others, are restarted after it.
//! - *One for all*: the components of a group are restarted together.
//! - Whoever is restarted with another one takes along whom it would take along if it had died itself. So what is restarted
//!   is the same whoever of a group dies, and it includes all that anybody in it would take along.
//! - Those that are restarted together stop with the users first, and start with the used first.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::manifest::Component;

/// What a component's restart means for those that use it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Nothing.
    #[default]
    OneForOne,
    /// They are restarted too.
    RestForOne,
}

impl Restart {
    /// What there is.
    pub const ALL: [Restart; 2] = [Restart::OneForOne, Restart::RestForOne];

    /// As a manifest writes it.
    pub fn name(self) -> &'static str {
        match self {
            Restart::OneForOne => "one-for-one",
            Restart::RestForOne => "rest-for-one",
        }
    }
}

/// How the components of a system hang together. They are named by their index in it.
#[derive(Debug)]
pub struct Ties {
    /// Whom each one uses, directly or through others.
    used: Vec<BTreeSet<usize>>,
    /// Who is restarted when it is, itself included, in the order in which they start.
    together: Vec<Vec<usize>>,
}

impl Ties {
    /// The ties of a checked system's components, each of which stands after all those that it uses.
    pub fn of(components: &[Component]) -> Ties {
        let mut used: Vec<BTreeSet<usize>> = Vec::new();
        for component in components {
            let directly = component.uses.iter().filter_map(|used| position(components, &used.component));
            let mut all: BTreeSet<usize> = directly.collect();
            let through: Vec<usize> =
                all.iter().flat_map(|&direct| used.get(direct).into_iter().flatten().copied()).collect();
            all.extend(through);
            used.push(all);
        }
        let together = (0..components.len()).map(|index| closure(components, &used, index)).collect();
        Ties { used, together }
    }

    /// Whether a component uses another one, directly or through others.
    pub fn uses(&self, component: usize, other: usize) -> bool {
        self.used[component].contains(&other)
    }

    /// All that are restarted when a component is, itself included, in the order in which they start.
    pub fn together(&self, component: usize) -> &[usize] {
        &self.together[component]
    }
}

fn position(components: &[Component], name: &str) -> Option<usize> {
    components.iter().position(|component| component.name == name)
}

fn closure(components: &[Component], used: &[BTreeSet<usize>], index: usize) -> Vec<usize> {
    let (mut together, mut unseen) = (BTreeSet::from([index]), vec![index]);
    while let Some(next) = unseen.pop() {
        let Component { restart, group, .. } = &components[next];
        let goes_along = |&other: &usize| {
            let is_rest = *restart == Restart::RestForOne && used[other].contains(&next);
            is_rest || (group.is_some() && components[other].group == *group)
        };
        unseen.extend((0..components.len()).filter(goes_along).filter(|&other| together.insert(other)));
    }
    // The order of the components is one in which they can start.
    together.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{EMBEDDED, Manifest, Origin};

    /// Who is restarted when this component of the built-in system is, changed by these replacements.
    fn together(changes: &[(&str, &str)], name: &str) -> Vec<String> {
        let text = changes.iter().fold(EMBEDDED.to_owned(), |text, (old, new)| {
            assert!(text.contains(old), "{old}");
            text.replace(old, new)
        });
        let checked = Manifest::load(Origin::Text { name: "test.toml", text: &text }, &[]).expect("it is good");
        let index = position(&checked.components, name).expect("it is there");
        let ties = Ties::of(&checked.components);
        ties.together(index).iter().map(|&index| checked.components[index].name.clone()).collect()
    }

    const REST: &str = "]\nrestart = \"rest-for-one\"";
    const GROUP: &str = "]\ngroup = \"one\"";

    #[test]
    fn by_default_nobody_else_is_restarted() {
        for name in ["disk", "fs", "net", "httpd"] {
            assert_eq!(together(&[], name), [name]);
        }
    }

    #[test]
    fn the_rest_is_who_uses_it_directly_or_through_others() {
        let disk = [("disk]", &format!("disk{REST}")[..])];
        assert_eq!(together(&disk, "disk"), ["disk", "fs", "net", "httpd"]);
        assert_eq!(together(&disk, "fs"), ["fs"], "what it uses is not touched");
        let fs = [("fs]", &format!("fs{REST}")[..])];
        assert_eq!(together(&fs, "fs"), ["fs", "httpd"], "nor is who uses the same as it");
        assert_eq!(together(&fs, "disk"), ["disk"]);
    }

    #[test]
    fn a_group_is_restarted_whoever_of_it_dies() {
        let group = [("disk]", &format!("disk{GROUP}")[..]), ("httpd]", &format!("httpd{GROUP}")[..])];
        for name in ["disk", "httpd"] {
            assert_eq!(together(&group, name), ["disk", "httpd"]);
        }
        assert_eq!(together(&group, "fs"), ["fs"]);
    }

    #[test]
    fn who_is_taken_along_takes_others_along() {
        let both = [
            ("fs]", &format!("fs{REST}")[..]),
            ("net]", &format!("net{GROUP}")[..]),
            ("httpd]", &format!("httpd{GROUP}")[..]),
        ];
        assert_eq!(together(&both, "fs"), ["fs", "net", "httpd"]);
        assert_eq!(together(&both, "net"), ["net", "httpd"]);
        assert_eq!(together(&both, "disk"), ["disk"]);
    }

    #[test]
    fn who_uses_whom_is_known_through_others() {
        let checked = Manifest::load(Origin::Embedded, &[]).expect("it is good");
        let ties = Ties::of(&checked.components);
        let [disk, fs, net, httpd] = [0, 1, 2, 3];
        assert!(ties.uses(httpd, disk) && ties.uses(fs, disk));
        assert!(!ties.uses(net, fs) && !ties.uses(disk, fs) && !ties.uses(fs, fs));
    }

    #[test]
    fn a_strategy_has_the_name_that_is_stored() {
        for restart in Restart::ALL {
            assert_eq!(serde_json::to_value(restart).expect("a word"), restart.name());
        }
    }
}
