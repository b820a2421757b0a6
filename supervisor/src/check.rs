//! The checks of a parsed manifest against what this build knows, and of its parts against each other.
//!
//! * Everything that can be known before a component starts is checked here: built-ins, interfaces and their versions,
//!   rights, configuration values, references, cycles, and two components that want the same file or port.
//! * A part that is wrong is left out of later checks, so that one mistake is reported once.

mod config;
mod interfaces;
mod order;
pub(crate) mod place;
mod reactors;
mod restart;

use std::collections::BTreeMap;
use std::path::Path;

use kernel_ipc::rights::Rights;
use serde_json::{Map, Value, json};

use self::interfaces::{Interface, Interfaces};
use crate::manifest::{Checked, Component, Provide, Run, Use};
use crate::parse::{Literal, Raw, RawComponent, RawUse, RawValue, Word, list};
use crate::policy::{self, Builtin, Default, Field, Kind, Narrowing};
use crate::report::{Place, Problem, Report};
use crate::ties::Restart;
use crate::value;

/// Turns a parsed manifest into a system that can be started.
///
/// # Errors
/// Every problem, also those that parsing found.
pub(crate) fn check(raw: Raw) -> Result<Checked, Report> {
    let mut report = raw.report;
    let order = order::order(&raw.components);
    let (mut problems, cyclic, base) = (order.problems, order.cyclic, raw.base.as_deref());
    let interfaces = Interfaces::of(&raw.interfaces, &mut problems);
    let mut checker = Checker { components: &raw.components, interfaces: &interfaces, base, problems, cyclic };
    let mut components: Vec<Component> = raw.components.iter().map(|component| checker.component(component)).collect();
    checker.conflicts();
    checker.problems.extend(restart::lonely(&raw.components));
    checker.problems.extend(place::problems(&raw.components));
    let operators = place::operators(&raw.operators, &raw.components, &mut checker.problems);
    report.problems.append(&mut checker.problems);
    if !report.problems.is_empty() {
        report.sort();
        return Err(report);
    }
    components.sort_by_key(|component| order.names.iter().position(|name| *name == component.name));
    Ok(Checked { system: raw.system.map_or_else(|| "atoll".into(), |name| name.text), operators, components })
}

struct Checker<'r> {
    components: &'r [RawComponent],
    interfaces: &'r Interfaces,
    /// Where relative paths of programs begin.
    base: Option<&'r Path>,
    problems: Vec<Problem>,
    /// Where the uses stand that are part of a cycle: nothing else is said about these.
    cyclic: Vec<Place>,
}

impl<'r> Checker<'r> {
    fn component(&mut self, raw: &'r RawComponent) -> Component {
        let run = self.run(raw);
        let builtin = run.as_ref().and_then(Run::builtin).and_then(policy::builtin);
        let config = match &run {
            Some(Run::Program(_)) => self.config_of_program(raw),
            _ => builtin.map_or(Value::Null, |builtin| self.config(raw, builtin)),
        };
        let provides = raw.provides.iter().filter_map(|(name, interface)| self.provide(builtin, name, interface));
        let provides = provides.collect();
        let uses = raw.uses.iter().filter_map(|used| self.used(raw, builtin, used)).collect();
        if let Some(builtin) = builtin {
            self.needs(raw, builtin);
        }
        Component {
            name: raw.name.text.clone(),
            // There is a problem if there is none.
            run: run.unwrap_or_else(|| Run::Builtin(String::new())),
            config,
            uses,
            provides,
            restart: restart::strategy(raw).unwrap_or_else(|problem| {
                self.problem(problem);
                Restart::default()
            }),
            group: raw.group.as_ref().map(|group| group.text.clone()),
            hung_after_seconds: self
                .number(raw, &policy::HUNG_AFTER, raw.hung_after.as_ref())
                .unwrap_or(policy::HUNG_AFTER_SECONDS),
            refuse_after_ms: self.number(raw, &policy::REFUSE_AFTER, raw.refuse_after.as_ref()),
            reactors: reactors::count(raw, builtin).unwrap_or_else(|problem| {
                self.problem(problem);
                1
            }),
            node: place::node(raw).unwrap_or_else(|problem| {
                self.problem(problem);
                None
            }),
        }
    }

    /// What the component's entry says for a field of every entry, if it says anything that makes sense.
    fn number(&mut self, raw: &RawComponent, field: &Field, given: Option<&RawValue>) -> Option<u32> {
        let given = given?;
        match config::meaning(field, given) {
            Ok(number) => number.as_u64().and_then(|number| u32::try_from(number).ok()),
            Err(reason) => {
                let title = format!("bad value for `{}` of component `{}`", field.name, raw.name.text);
                self.problem(Problem::at(&given.place, title, reason));
                None
            }
        }
    }

    fn run(&mut self, raw: &RawComponent) -> Option<Run> {
        let Some(run) = &raw.run else {
            let title = format!("component `{}` does not say what it runs", raw.name.text);
            let help = "add run = \"builtin:NAME\" or run = \"program:PATH\"";
            self.problem(Problem::at(&raw.name.place, title, "`run` is missing").help(help));
            return None;
        };
        if let Some(path) = run.text.strip_prefix("program:") {
            return self.program(run, path);
        }
        let names: Vec<&str> = policy::builtins().iter().map(|builtin| builtin.name).collect();
        let Some(name) = run.text.strip_prefix("builtin:") else {
            let title = format!("component `{}` runs something that is not built in", raw.name.text);
            let help = format!("write \"program:PATH\", or \"builtin:NAME\" with one of {}", list(&names));
            self.problem(Problem::at(&run.place, title, "not a built-in component").help(help));
            return None;
        };
        if policy::builtin(name).is_some() {
            return Some(Run::Builtin(name.into()));
        }
        let help = match value::nearest(name, names.iter().copied()) {
            Some(near) => format!("did you mean `builtin:{near}`?"),
            None => format!("the built-in components are {}", list(&names)),
        };
        let title = format!("there is no built-in component `{}`", name.escape_debug());
        self.problem(Problem::at(&run.place, title, "unknown").help(help));
        None
    }

    /// A program is looked for when it is started: it may be on another node, or not be built yet.
    fn program(&mut self, run: &Word, path: &str) -> Option<Run> {
        let problem = |label| Problem::at(&run.place, format!("`{}` is no program", path.escape_debug()), label);
        if path.ends_with('/') || path.contains('\0') || Path::new(path).file_name().is_none() {
            self.problem(problem("not a file's name").help("write \"program:\" and a path"));
            return None;
        }
        let whole = match self.base {
            Some(base) => base.join(path),
            None if path.starts_with('/') => path.into(),
            None => {
                let help = "it starts at the manifest's directory, and this manifest is in no file";
                self.problem(problem("a relative path").help(help));
                return None;
            }
        };
        if whole.to_str().is_none() {
            self.problem(problem("its directory's name is not UTF-8"));
            return None;
        }
        Some(Run::Program(whole))
    }

    /// Whatever it is: the program says what it takes.
    fn config_of_program(&mut self, raw: &RawComponent) -> Value {
        let mut object = Map::new();
        for (key, given) in &raw.config {
            match config::any(given) {
                Ok(value) => drop(object.insert(key.text.clone(), value)),
                Err(reason) => {
                    let title = format!("bad value for `{}` of component `{}`", key.text.escape_debug(), raw.name.text);
                    self.problem(Problem::at(&given.place, title, reason));
                }
            }
        }
        Value::Object(object)
    }

    fn config(&mut self, raw: &RawComponent, builtin: &Builtin) -> Value {
        let mut object = Map::new();
        let names: Vec<&str> = builtin.config.iter().map(|field| field.name).collect();
        for (key, given) in &raw.config {
            let Some(field) = builtin.config.iter().find(|field| field.name == key.text) else {
                let title =
                    format!("builtin:{} has no configuration field `{}`", builtin.name, key.text.escape_debug());
                let help = match value::nearest(&key.text, names.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None if names.is_empty() => "it takes no configuration".into(),
                    None => format!("its fields are {}", list(&names)),
                };
                self.problem(Problem::at(&key.place, title, "not known here").help(help));
                continue;
            };
            match config::meaning(field, given) {
                Ok(value) => drop(object.insert(field.name.into(), value)),
                Err(reason) => {
                    let title = format!("bad value for `{}` of component `{}`", field.name, raw.name.text);
                    self.problem(Problem::at(&given.place, title, reason));
                }
            }
        }
        for field in builtin.config.iter().filter(|field| !raw.config.iter().any(|(key, _)| key.text == field.name)) {
            match field.default {
                Default::Absent => {}
                Default::Bytes(bytes) => drop(object.insert(field.name.into(), json!(bytes))),
                Default::Flag(flag) => drop(object.insert(field.name.into(), json!(flag))),
                Default::Required => {
                    let title = format!("component `{}` needs a value for `{}`", raw.name.text, field.name);
                    let label = format!("builtin:{} cannot do without", builtin.name);
                    let help = format!("add it to config = {{ {} = {} }}", field.name, config::example(field.kind));
                    self.problem(Problem::at(&raw.name.place, title, label).help(help));
                }
            }
        }
        Value::Object(object)
    }

    fn provide(&mut self, builtin: Option<&Builtin>, name: &Word, interface: &Word) -> Option<Provide> {
        let known = self.interface(interface)?;
        if let Some(builtin) = builtin {
            let Some(offer) = builtin.provides.iter().find(|offer| offer.name == name.text) else {
                let names: Vec<&str> = builtin.provides.iter().map(|offer| offer.name).collect();
                let help = match names.as_slice() {
                    [] => "it serves nothing".into(),
                    names => format!("it serves {}", list(names)),
                };
                let title = format!("builtin:{} has no endpoint `{}`", builtin.name, name.text.escape_debug());
                self.problem(Problem::at(&name.place, title, "not served by it").help(help));
                return None;
            };
            if offer.interface != known.name {
                let title = format!("builtin:{} does not serve {} on `{}`", builtin.name, known.name, name.text);
                let label = format!("it serves {}", offer.interface);
                self.problem(Problem::at(&interface.place, title, label));
                return None;
            }
        }
        Some(Provide { name: name.text.clone(), interface: known.name.clone() })
    }

    fn interface(&mut self, word: &Word) -> Option<&'r Interface> {
        let known = self.interfaces.find(&word.text);
        if known.is_none() {
            let family = word.text.split('/').next().unwrap_or_default();
            let names: Vec<&str> = self.interfaces.names().collect();
            let version = names.iter().find(|name| name.split('/').next() == Some(family));
            let shown = word.text.escape_debug();
            self.problem(match version {
                Some(version) => {
                    Problem::at(&word.place, format!("this build does not have `{shown}`"), "wrong interface version")
                        .help(format!("it has {version}"))
                }
                None => Problem::at(&word.place, format!("there is no interface `{shown}`"), "unknown").help(format!(
                    "the interfaces are {}; one of your own is described by [interface.\"{shown}\"]",
                    list(&names)
                )),
            });
        }
        known
    }

    fn used(&mut self, raw: &RawComponent, builtin: Option<&Builtin>, used: &RawUse) -> Option<Use> {
        if self.cyclic.contains(&used.place) {
            return None;
        }
        let need = builtin.and_then(|builtin| builtin.uses.iter().find(|need| need.name == used.name.text));
        if let (Some(builtin), None) = (builtin, need) {
            let names: Vec<&str> = builtin.uses.iter().map(|need| need.name).collect();
            let title =
                format!("builtin:{} does not use anything called `{}`", builtin.name, used.name.text.escape_debug());
            let help = match names.as_slice() {
                [] => "it uses nothing".into(),
                names => format!("it uses {}", list(names)),
            };
            self.problem(Problem::at(&used.name.place, title, "not used by it").help(help));
        }
        let provider = self.provider(used);
        if used.rights.is_none() {
            let title = format!("use `{}` does not say with which rights", used.name.text);
            let rights = need.map_or(&["read"][..], |need| need.rights);
            let help = format!("add rights = {rights:?}");
            self.problem(Problem::at(&used.place, title, "`rights` is missing").help(help));
        }
        let (component, endpoint, interface, declared) = provider?;
        if let (Some(builtin), Some(need)) = (builtin, need)
            && need.interface != interface.name
            && let Some(from) = &used.from
        {
            let title = format!("use `{}` of component `{}` gets the wrong interface", used.name.text, raw.name.text);
            let label = format!("builtin:{} speaks {} here", builtin.name, need.interface);
            self.problem(Problem::at(&from.place, title, label).and(&declared, format!("this is {}", interface.name)));
            return None;
        }
        let rights = self.rights(used, &endpoint, interface, &declared);
        let attenuation = self.attenuation(raw, builtin, used, &endpoint, interface);
        Some(Use {
            name: used.name.text.clone(),
            component,
            endpoint: endpoint.rsplit('.').next().unwrap_or_default().into(),
            interface: interface.name.clone(),
            rights,
            attenuation,
        })
    }

    /// The component, `component.endpoint`, its interface and where that is declared.
    fn provider(&mut self, used: &RawUse) -> Option<(String, String, &'r Interface, Place)> {
        let Some(from) = &used.from else {
            let title = format!("use `{}` does not say from where", used.name.text);
            let help = "add from = \"component.endpoint\"";
            self.problem(Problem::at(&used.place, title, "`from` is missing").help(help));
            return None;
        };
        let shown = from.text.escape_debug();
        let Some((component, endpoint)) = from.text.split_once('.') else {
            self.problem(Problem::at(&from.place, format!("`{shown}` names no endpoint"), "write component.endpoint"));
            return None;
        };
        let Some(provider) = self.components.iter().find(|found| found.name.text == component) else {
            let names: Vec<&str> = self.components.iter().map(|found| found.name.text.as_str()).collect();
            let help = match value::nearest(component, names.iter().copied()) {
                Some(near) => format!("did you mean `{near}.{endpoint}`?"),
                None => format!("the components are {}", list(&names)),
            };
            let title = format!("there is no component `{}`", component.escape_debug());
            self.problem(Problem::at(&from.place, title, "not in this manifest").help(help));
            return None;
        };
        let Some((_, interface)) = provider.provides.iter().find(|(name, _)| name.text == endpoint) else {
            let names: Vec<&str> = provider.provides.iter().map(|(name, _)| name.text.as_str()).collect();
            let title = format!("component `{component}` does not provide `{}`", endpoint.escape_debug());
            let label = match names.as_slice() {
                [] => "it provides nothing".into(),
                names => format!("it provides {}", list(names)),
            };
            self.problem(Problem::at(&from.place, title, "no such endpoint").and(&provider.name.place, label));
            return None;
        };
        // An unknown interface is reported where it is declared.
        let known = self.interfaces.find(&interface.text)?;
        Some((component.into(), from.text.clone(), known, interface.place.clone()))
    }

    fn rights(&mut self, used: &RawUse, endpoint: &str, interface: &Interface, declared: &Place) -> Rights {
        let mut bits = Rights::empty();
        for right in used.rights.iter().flatten() {
            let names: Vec<&str> = interface.rights.iter().map(|(name, _)| name.as_str()).collect();
            match interface.rights.iter().find(|(name, _)| *name == right.text) {
                Some((_, bit)) => bits |= *bit,
                None => {
                    let shown = right.text.escape_debug();
                    let title = format!("`{endpoint}` does not offer the right `{shown}`");
                    let label = format!("{} has no `{shown}`", interface.name);
                    let help = match value::nearest(&right.text, names.iter().copied()) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => format!("its rights are {}", list(&names)),
                    };
                    self.problem(Problem::at(&right.place, title, label).and(declared, "its interface").help(help));
                }
            }
        }
        bits
    }

    fn attenuation(
        &mut self,
        raw: &RawComponent,
        builtin: Option<&Builtin>,
        used: &RawUse,
        endpoint: &str,
        interface: &Interface,
    ) -> Value {
        let mut object = Map::new();
        let given = [(Narrowing::Path, &used.path), (Narrowing::Tcp, &used.tcp)];
        for (narrowing, word) in
            given.iter().filter_map(|(narrowing, word)| word.as_ref().map(|word| (*narrowing, word)))
        {
            if interface.narrowing != Some(narrowing) {
                let title = format!("`{}` does not narrow `{endpoint}`", narrowing.key());
                let label = format!("{} has no `{}`", interface.name, narrowing.key());
                self.problem(Problem::at(&word.place, title, label));
                continue;
            }
            let value = match narrowing {
                Narrowing::Path => value::absolute_path(&word.text).map(|()| Some(word.text.clone())),
                Narrowing::Tcp => tcp(raw, builtin, &word.text),
            };
            match value {
                Ok(Some(value)) => drop(object.insert(narrowing.key().into(), json!(value))),
                Ok(None) => {}
                Err(reason) => {
                    let title = format!("bad `{}` in use `{}`", narrowing.key(), used.name.text);
                    self.problem(Problem::at(&word.place, title, reason));
                }
            }
        }
        let listens = used.rights.iter().flatten().any(|right| right.text == "listen");
        if interface.narrowing == Some(Narrowing::Tcp) && listens && used.tcp.is_none() {
            let title = format!("use `{}` may listen, but not say where", used.name.text);
            let help = "add tcp = \"config.listen\" or tcp = \"127.0.0.1:8080\"";
            self.problem(Problem::at(&used.place, title, "`tcp` is missing").help(help));
        }
        Value::Object(object)
    }

    /// Reports what the built-in cannot do without and does not have.
    fn needs(&mut self, raw: &RawComponent, builtin: &Builtin) {
        for need in builtin.uses {
            let Some(used) = raw.uses.iter().find(|used| used.name.text == need.name) else {
                if need.is_optional && raw.place.is_some() {
                    continue;
                }
                let title = format!("component `{}` has no use `{}`", raw.name.text, need.name);
                let label = format!("builtin:{} needs {}", builtin.name, need.interface);
                let help =
                    format!("add uses.{} = {{ from = \"component.endpoint\", rights = {:?} }}", need.name, need.rights);
                self.problem(Problem::at(&raw.name.place, title, label).help(help));
                continue;
            };
            if self.cyclic.contains(&used.place) {
                continue;
            }
            let Some(rights) = &used.rights else { continue };
            let absent: Vec<&str> =
                need.rights.iter().copied().filter(|right| !rights.iter().any(|given| given.text == **right)).collect();
            if !absent.is_empty() {
                let title = format!("use `{}` of component `{}` has too few rights", used.name.text, raw.name.text);
                let label = format!("builtin:{} also needs {}", builtin.name, list(&absent));
                self.problem(Problem::at(&used.place, title, label));
            }
        }
    }

    /// Reports two components that want the same file or the same port.
    fn conflicts(&mut self) {
        let mut taken: BTreeMap<(&str, String), (&RawComponent, &Place)> = BTreeMap::new();
        for raw in self.components {
            let name = raw.run.as_ref().and_then(|run| run.text.strip_prefix("builtin:"));
            let Some(builtin) = name.and_then(policy::builtin) else {
                continue;
            };
            for (key, given) in &raw.config {
                let Some(field) = builtin.config.iter().find(|field| field.name == key.text) else {
                    continue;
                };
                let Literal::Text(text) = &given.literal else {
                    continue;
                };
                let (what, identity) = match field.kind {
                    Kind::HostPath => ("file", text.clone()),
                    Kind::Address => match value::address(text) {
                        Ok(address) if address.port() != 0 => ("address", address.to_string()),
                        _ => continue,
                    },
                    Kind::Size { .. } | Kind::Count { .. } | Kind::Flag => continue,
                };
                if let Some((other, place)) = taken.get(&(what, identity.clone())) {
                    let title =
                        format!("components `{}` and `{}` want the same {what}", other.name.text, raw.name.text);
                    let problem = Problem::at(&given.place, title, format!("`{identity}` is already taken"));
                    self.problems.push(problem.and(place, format!("by component `{}`", other.name.text)));
                } else {
                    taken.insert((what, identity), (raw, &given.place));
                }
            }
        }
    }

    fn problem(&mut self, problem: Problem) {
        self.problems.push(problem);
    }
}

/// The address of `tcp = "config.KEY"` or `tcp = "IP:PORT"`; nothing when what it refers to is reported already.
fn tcp(raw: &RawComponent, builtin: Option<&Builtin>, text: &str) -> Result<Option<String>, String> {
    let Some(key) = text.strip_prefix("config.") else {
        return value::address(text)
            .map(|address| Some(address.to_string()))
            .map_err(|reason| format!("{reason}, or config.KEY"));
    };
    let field = builtin.and_then(|builtin| builtin.config.iter().find(|field| field.name == key));
    let given = raw.config.iter().find(|(name, _)| name.text == key).map(|(_, given)| given);
    if let (None, Some(RawValue { literal: Literal::Text(text), .. })) = (builtin, given) {
        return value::address(text).map(|address| Some(address.to_string()));
    }
    match (field.map(|field| field.kind), given.map(|given| &given.literal)) {
        (Some(Kind::Address), Some(Literal::Text(address))) => {
            Ok(value::address(address).ok().map(|address| address.to_string()))
        }
        (Some(Kind::Address), _) => Ok(None),
        (Some(_), _) => Err(format!("config.{key} is no address")),
        (None, Some(_)) if builtin.is_none() => Err(format!("config.{key} is no text")),
        (None, _) => Err(format!("component `{}` has no config.{}", raw.name.text, key.escape_debug())),
    }
}
