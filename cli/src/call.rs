//! `atoll call`: an operation of any endpoint, by the description that its host gives of itself.
//!
//! * Arguments and results are JSON; `kernel-ipc/src/described/encode.rs` says what is written how.
//! * Calls of one command line are made on one session. What one gives, a later one can name: `$1`, `$2`, … in the order in
//!   which they came. All of it is released at the end.
//! * A guest lends nothing: a lease in the arguments is one that an earlier call gave.

use std::io::Read;
use std::time::Duration;

use kernel_ipc::component::{Connection, Context};
use kernel_ipc::described::{self, Book, Checked, Definition, Entry, NoResult, Operation, Type};
use kernel_ipc::interface::Retry;
use kernel_ipc::session::ClientSession;
use kernel_ipc::{Cause, Executed, Failure};
use serde_json::{Value, json};

use crate::args::{Call, Common};
use crate::explain;
use crate::interface::{AGAIN, Host, host};
use crate::node::visit;
use crate::output::{self, Failed};
use crate::why::lost;

/// Most bytes of a lease that are shown.
const MOST_DATA: u64 = 1 << 20;

/// Makes the calls, one after the other, until one fails.
pub fn call(common: &Common, call: &Call) -> Result<(), Failed> {
    let mut steps = Vec::new();
    match &call.arguments {
        Some(arguments) => steps.push((call.operation.as_str(), parse(&call.operation, Some(arguments))?)),
        None => steps.push(step(&call.operation)?),
    }
    for then in &call.then {
        steps.push(step(then)?);
    }
    visit(common, async |context| {
        let Host { endpoint, connection, interface } = host(&context, &call.endpoint).await?;
        let steps = steps.iter().map(|(name, arguments)| Ok((find(&interface, name)?, arguments)));
        // All of them, before the first is made.
        let steps = steps.collect::<Result<Vec<_>, Failed>>()?;
        let session = connection.session().await.map_err(|failure| Failed::new(failure.to_string()))?;
        let (interface, book) = (&interface, Book::default());
        let mut caller = Caller { context, endpoint, interface, connection, session, book, call };
        let mut facts = Vec::new();
        let mut done = Ok(());
        for (operation, arguments) in steps {
            match caller.step(operation, arguments).await {
                Ok(result) if common.json => facts.push(json!({ "operation": operation.name, "result": result })),
                Ok(result) => output::json(&result)?,
                Err(no_result) => {
                    facts.push(json!({ "operation": operation.name, "error": fact(&no_result) }));
                    done = Err(caller.why(operation, &no_result));
                    break;
                }
            }
        }
        if common.json {
            output::json(&json!({ "endpoint": caller.endpoint, "interface": interface.name, "calls": facts }))?;
        }
        done
    })
}

/// `read {"offset": 0}`
fn step(text: &str) -> Result<(&str, Value), Failed> {
    let (operation, arguments) = match text.trim().split_once(char::is_whitespace) {
        Some((operation, arguments)) => (operation, Some(arguments)),
        None => (text.trim(), None),
    };
    Ok((operation, parse(operation, arguments)?))
}

/// `-` is standard input, nothing an object without fields.
fn parse(operation: &str, arguments: Option<&str>) -> Result<Value, Failed> {
    let text = match arguments {
        None => "{}".into(),
        Some("-") => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            text
        }
        Some(text) => text.to_owned(),
    };
    serde_json::from_str(&text)
        .map_err(|error| Failed::usage(format!("the arguments of {operation} are no JSON: {error}")))
}

fn find<'i>(interface: &'i Checked, name: &str) -> Result<&'i Operation, Failed> {
    interface.operation(name).ok_or_else(|| {
        let names: Vec<&str> = interface.operations.iter().map(|operation| operation.name.as_str()).collect();
        Failed::usage(format!("{} has no operation {name}", interface.name))
            .help(format!("it has {}", names.join(", ")))
    })
}

struct Caller<'a> {
    context: Context,
    endpoint: String,
    interface: &'a Checked,
    connection: Connection,
    session: ClientSession,
    book: Book,
    call: &'a Call,
}

impl Caller<'_> {
    async fn step(&mut self, operation: &Operation, arguments: &Value) -> Result<Value, NoResult> {
        let deadline = self.call.deadline.or(operation.deadline_ns.map(Duration::from_nanos));
        let mut again = AGAIN;
        let result = loop {
            match self.interface.call(&self.session, operation, arguments, deadline, &mut self.book).await {
                Err(NoResult::Failed(failure)) if again > 0 && self.may_ask_again(operation, failure) => {
                    again -= 1;
                    self.session = self.connection.session().await.map_err(NoResult::Failed)?;
                }
                result => break result,
            }
        };
        result.map(|mut result| {
            if self.call.data {
                self.add_data(&mut result);
            }
            result
        })
    }

    /// Whether the host's next incarnation can be asked the same: what may run twice, or has not run, and names nothing that
    /// the dead one gave.
    fn may_ask_again(&self, operation: &Operation, failure: Failure) -> bool {
        let is_death = matches!(failure.cause, Cause::PeerDied | Cause::StaleEpoch);
        let is_harmless = failure.executed == Executed::No || operation.retry == Retry::Idempotent;
        is_death && is_harmless && self.book.entries().is_empty()
    }

    /// Puts the bytes of leases beside their names.
    fn add_data(&self, result: &mut Value) {
        match result {
            Value::Array(elements) => elements.iter_mut().for_each(|element| self.add_data(element)),
            Value::Object(fields) => {
                let name = fields.get("lease").and_then(Value::as_str);
                match name.and_then(|name| self.book.find(name)) {
                    Some(Entry::Lease(lease)) => {
                        let mut bytes = vec![0; lease.length.min(MOST_DATA) as usize];
                        let data = match self.context.holder().borrow().read(lease, 0, &mut bytes) {
                            Ok(()) => described::bytes_as_json(&bytes),
                            Err(stale) => json!({ "unreadable": format!("{stale:?}") }),
                        };
                        fields.insert("data".into(), data);
                    }
                    _ => fields.values_mut().for_each(|field| self.add_data(field)),
                }
            }
            _ => {}
        }
    }

    fn why(&self, operation: &Operation, no_result: &NoResult) -> Failed {
        let what = format!("{} {}", self.endpoint, operation.name);
        match no_result {
            NoResult::Wrong(wrong) => Failed::usage(format!("{what}: {wrong}"))
                .help(format!("`atoll interface show {}` shows what it takes", self.endpoint)),
            NoResult::Error { name, number, about, fields } => {
                let fields = match fields.as_object() {
                    Some(fields) if fields.is_empty() => String::new(),
                    _ => format!(" {fields}"),
                };
                let code = explain::code(&self.interface.name, *number);
                Failed::new(format!("{what}: {name}{fields} (error {code}): {}", lower(about)))
            }
            NoResult::Failed(failure) => {
                let failed = lost(&what, failure.cause, failure.executed);
                let rules = self.rules(operation);
                if failure.cause != Cause::BadArguments || rules.is_empty() {
                    return failed;
                }
                failed.help(format!("the host knows rules that its description only tells: {}", rules.join("; ")))
            }
        }
    }

    /// The texts of what is more than bytes among the arguments of an operation.
    fn rules(&self, operation: &Operation) -> Vec<String> {
        let rule = |field: &described::Field| match &field.ty {
            Type::Named(name) => match self.interface.types.get(name) {
                Some(Definition::Bytes { about, .. }) => Some(format!("{} is {}", field.name, lower(about))),
                _ => None,
            },
            _ => None,
        };
        operation.arguments.iter().filter_map(rule).collect()
    }
}

fn fact(no_result: &NoResult) -> Value {
    match no_result {
        NoResult::Wrong(wrong) => json!({ "wrong": wrong.to_string(), "executed": "no" }),
        NoResult::Error { number, name, about, fields } => {
            json!({ "number": number, "name": name, "about": about, "fields": fields })
        }
        NoResult::Failed(failure) => {
            let cause = format!("{:?}", failure.cause);
            let (name, number) = (cause.split(' ').next(), failure.cause.number());
            let mut fact = json!({ "cause": name, "number": number, "executed": failure.executed });
            if let Cause::Poisoned { crash } = failure.cause {
                fact["crash"] = json!(crash);
            }
            fact
        }
    }
}

/// With a small first letter.
fn lower(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().into_iter().flat_map(char::to_lowercase).chain(characters).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarantined_call_names_its_crash() {
        let failure = Failure { cause: Cause::Poisoned { crash: 3 }, executed: Executed::No };
        let expected = json!({ "cause": "Poisoned", "number": 20, "executed": "no", "crash": 3 });
        assert_eq!(fact(&NoResult::Failed(failure)), expected);
    }
}
