//! The order in which components start: each after all those that it uses.

use crate::parse::{RawComponent, RawUse};
use crate::report::{Place, Problem};

/// A start order, and what stands against there being one.
pub(super) struct Order {
    /// The components' names, each after all those that it uses.
    pub names: Vec<String>,
    /// The cycles.
    pub problems: Vec<Problem>,
    /// The places of the uses that are part of a cycle.
    pub cyclic: Vec<Place>,
}

/// Orders `components`; among those that could start at the same time, the order of the text decides.
pub(super) fn order(components: &[RawComponent]) -> Order {
    let mut walk = Walk { components, path: Vec::new(), done: Vec::new(), problems: Vec::new(), cyclic: Vec::new() };
    for index in 0..components.len() {
        walk.visit(index);
    }
    let names = walk.done.iter().filter_map(|index| components.get(*index)).map(|raw| raw.name.text.clone()).collect();
    Order { names, problems: walk.problems, cyclic: walk.cyclic }
}

/// A depth-first walk along the uses. An explicit stack: a chain may be as long as the manifest.
struct Walk<'r> {
    components: &'r [RawComponent],
    /// Component, and the index of the use that is being followed.
    path: Vec<(usize, usize)>,
    done: Vec<usize>,
    problems: Vec<Problem>,
    cyclic: Vec<Place>,
}

impl Walk<'_> {
    fn visit(&mut self, root: usize) {
        if self.done.contains(&root) {
            return;
        }
        self.path.push((root, 0));
        while let Some((component, next)) = self.path.last_mut() {
            let component = *component;
            let Some(used) = self.components[component].uses.get(*next) else {
                self.done.push(component);
                self.path.pop();
                continue;
            };
            *next += 1;
            let provider = used.from.as_ref().and_then(|from| from.text.split('.').next());
            let Some(provider) = self.components.iter().position(|raw| Some(raw.name.text.as_str()) == provider) else {
                continue;
            };
            if let Some(start) = self.path.iter().position(|(on_path, _)| *on_path == provider) {
                self.cycle(start);
            } else if !self.done.contains(&provider) {
                self.path.push((provider, 0));
            }
        }
    }

    /// Reports the cycle that begins at `start` of the path.
    fn cycle(&mut self, start: usize) {
        let steps: Vec<(&RawComponent, &RawUse)> = self.path[start..]
            .iter()
            .map(|(component, next)| (&self.components[*component], &self.components[*component].uses[*next - 1]))
            .collect();
        self.cyclic.extend(steps.iter().map(|(_, used)| used.place.clone()));
        let mut names: Vec<&str> = steps.iter().map(|(raw, _)| raw.name.text.as_str()).collect();
        names.extend(names.first().copied());
        let mut marks = steps.iter().filter_map(|(raw, used)| {
            used.from.as_ref().map(|from| (&from.place, format!("`{}` waits for `{}`", raw.name.text, from.text)))
        });
        let Some((place, label)) = marks.next() else {
            return;
        };
        let title = format!("components use each other in a cycle: {}", names.join(" -> "));
        let mut problem =
            Problem::at(place, title, label).help("none of them could start first: remove one of these uses");
        for (place, label) in marks {
            problem = problem.and(place, label);
        }
        self.problems.push(problem);
    }
}
