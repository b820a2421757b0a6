//! `atoll explain error`: every number with which a call can end, from the descriptions of the interfaces.
//!
//! A code is the last word of an interface's name and a number, `fs-5`: inside an interface a number means the same in every operation.
//! `call-9` is how a call fails, whatever its interface.

use kernel_ipc::Cause;
use kernel_ipc::described::Interface;
use protocol::INTERFACES;
use serde_json::{Value, json};

use crate::args::Common;
use crate::output::{self, Align, Colour, Failed, Table, paint};

/// What comes before the number of a failure that is of no interface.
const CALL: &str = "call";

/// Numbers of causes are below this.
const CAUSES: u16 = 256;

/// What one number means.
struct Page {
    code: String,
    /// Whose it is.
    of: String,
    name: String,
    /// What is said of it, and of which operations.
    texts: Vec<(String, Vec<String>)>,
}

/// The code of an operation's error.
pub fn code(interface: &str, number: u16) -> String {
    let family = interface.split('/').next().unwrap_or_default();
    format!("{}-{number}", family.rsplit('.').next().unwrap_or_default())
}

/// Explains a code, or lists all of them.
pub fn errors(common: &Common, wanted: Option<&str>) -> Result<(), Failed> {
    let pages = pages();
    let Some(wanted) = wanted else {
        if common.json {
            return output::json(&pages.iter().map(fact).collect::<Vec<_>>());
        }
        let mut table = Table::new(&["code", "name", "meaning"].map(|column| (column, Align::Left)));
        for Page { code, name, texts, .. } in &pages {
            table.row(vec![
                code.clone(),
                name.clone(),
                texts.first().map_or_else(String::new, |(text, _)| text.clone()),
            ]);
        }
        return output::write(table.render(output::stdout_colours()).as_bytes());
    };
    let page = pages.into_iter().find(|page| page.code == wanted).ok_or_else(|| {
        Failed::new(format!("there is no error {wanted}"))
            .help("`atoll explain error` lists those of the kit; `atoll interface show ENDPOINT` shows those of a host")
    })?;
    if common.json {
        return output::json(&fact(&page));
    }
    let Page { code, of, name, texts } = page;
    output::line(&format!("{}  {name}, of {of}", paint(&code, Colour::Bold, output::stdout_colours())))?;
    for (text, operations) in texts {
        output::line(&format!("\n{text}."))?;
        if !operations.is_empty() {
            output::line(&format!("  {}", operations.join(", ")))?;
        }
    }
    match of == CALL_OF {
        true => output::line(EXECUTED),
        false => Ok(()),
    }
}

const CALL_OF: &str = "any call";
const EXECUTED: &str = "\nEvery failure says whether the call ran: No, Yes or Unknown. One that did not run may be made again whatever it does.";

fn fact(page: &Page) -> Value {
    let text = |(text, operations): &(String, Vec<String>)| json!({"about": text, "operations": operations});
    json!({"code": page.code, "of": page.of, "name": page.name, "texts": page.texts.iter().map(text).collect::<Vec<_>>()})
}

fn pages() -> Vec<Page> {
    let mut pages: Vec<Page> = INTERFACES.iter().flat_map(|known| of(&Interface::of(known.description))).collect();
    pages.extend((1..CAUSES).filter_map(|number| {
        let cause = Cause::from_number(number, 0)?;
        let debug = format!("{cause:?}");
        let name = debug.split([' ', '{']).next().unwrap_or_default().to_owned();
        let mut text = cause.to_string();
        text[..1].make_ascii_uppercase();
        Some(Page { code: format!("{CALL}-{number}"), of: CALL_OF.into(), name, texts: vec![(text, Vec::new())] })
    }));
    pages
}

/// The numbers of an interface, in their order.
fn of(interface: &Interface) -> Vec<Page> {
    let mut pages: std::collections::BTreeMap<u16, Page> = std::collections::BTreeMap::new();
    for (set, variants) in &interface.errors {
        let operations = interface.operations.iter().filter(|operation| operation.error == *set);
        let operations: Vec<String> = operations.map(|operation| operation.name.clone()).collect();
        for variant in variants {
            let page = pages.entry(variant.number).or_insert_with(|| Page {
                code: code(&interface.name, variant.number),
                of: interface.name.clone(),
                name: variant.name.clone(),
                texts: Vec::new(),
            });
            match page.texts.iter_mut().find(|(text, _)| *text == variant.about) {
                Some((_, of)) => of.extend(operations.iter().cloned()),
                None => page.texts.push((variant.about.clone(), operations.clone())),
            }
        }
    }
    pages.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_of_every_interface_and_every_cause_has_a_page() {
        let pages = pages();
        for known in &INTERFACES {
            let interface = Interface::of(known.description);
            for (set, variants) in &interface.errors {
                for variant in variants {
                    let code = code(&interface.name, variant.number);
                    let page = pages.iter().find(|page| page.code == code).unwrap_or_else(|| panic!("no page {code}"));
                    let said = page.texts.iter().any(|(text, _)| *text == variant.about);
                    assert!(said && !variant.about.is_empty(), "{set}::{} says nothing", variant.name);
                }
            }
        }
        for cause in [Cause::RightsMissing, Cause::BUSY, Cause::NotBrought] {
            let page =
                pages.iter().find(|page| page.code == format!("call-{}", cause.number())).expect("it has a page");
            assert!(page.texts[0].0.len() > 5 && !page.name.is_empty(), "{cause:?}");
        }
        let mut codes: Vec<&str> = pages.iter().map(|page| page.code.as_str()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), pages.len(), "a code is one page");
    }
}
