//! `atoll restart`, `stop`, `start`, `freeze`, `thaw`: what an operator does to one component.

use kernel_ipc::CallError;
use protocol::control::{self, ComponentStatus, FreezeError, RestartError, StopError};

use crate::args::Common;
use crate::control::{ask, components, facts};
use crate::node::{connect, visit};
use crate::output::{self, Failed};
use crate::why::{Words, why};

/// `atoll restart COMPONENT`: returns when its next run has begun.
pub fn restart(common: &Common, component: &str) -> Result<(), Failed> {
    let done = done(common, component, async |control| control.restart(control.root(), component).await);
    done?.say(common, |one| format!("{component} was started again, epoch {}", one.epoch))
}

/// `atoll stop COMPONENT`: returns when it has ended.
pub fn stop(common: &Common, component: &str) -> Result<(), Failed> {
    let done = done(common, component, async |control| control.stop(control.root(), component).await);
    done?.say(common, |_| format!("{component} is down; `atoll start {component}` starts it"))
}

/// `atoll start COMPONENT`: returns when its run has begun.
pub fn start(common: &Common, component: &str) -> Result<(), Failed> {
    let done = done(common, component, async |control| control.start(control.root(), component).await);
    done?.say(common, |one| format!("{component} is started, epoch {}", one.epoch))
}

/// `atoll freeze COMPONENT`.
pub fn freeze(common: &Common, component: &str) -> Result<(), Failed> {
    let done = done(common, component, async |control| control.freeze(control.root(), component).await);
    done?.say(common, |_| format!("{component} is frozen; `atoll thaw {component}` lets it go on"))
}

/// `atoll thaw COMPONENT`.
pub fn thaw(common: &Common, component: &str) -> Result<(), Failed> {
    let done = done(common, component, async |control| control.thaw(control.root(), component).await);
    done?.say(common, |one| format!("{component} goes on, epoch {}", one.epoch))
}

/// How a component is after something was done to it.
struct Done(ComponentStatus);

/// Does something to a component that bears being done twice.
fn done<T, E: Words>(
    common: &Common,
    component: &str,
    call: impl AsyncFn(&control::Client) -> Result<T, CallError<E>>,
) -> Result<Done, Failed> {
    let status = visit(common, async |context| {
        let control: control::Client = connect(&context, "control").await?;
        ask(async || call(&control).await).await.map_err(|error| why(&component, &error))?;
        Ok(components(&context).await?.into_iter().find(|one| one.name == component))
    })?;
    status.map(Done).ok_or_else(|| Failed::new(format!("{component}: it is gone")))
}

impl Done {
    fn say(&self, common: &Common, words: impl Fn(&ComponentStatus) -> String) -> Result<(), Failed> {
        match common.json {
            true => output::json(&facts(&self.0, false)),
            false => output::line(&words(&self.0)),
        }
    }
}

/// What several of the operations may say.
fn no_such_component() -> (String, Option<&'static str>) {
    ("no such component".into(), Some("`atoll ps` lists the components"))
}

fn going_down() -> (String, Option<&'static str>) {
    ("the system is going down".into(), None)
}

impl Words for RestartError {
    fn words(&self) -> (String, Option<&'static str>) {
        match self {
            Self::NoSuchComponent => no_such_component(),
            Self::Stopping => going_down(),
        }
    }
}

impl Words for StopError {
    fn words(&self) -> (String, Option<&'static str>) {
        match self {
            Self::NoSuchComponent => no_such_component(),
            Self::Stopping => going_down(),
            Self::NotUp => ("the system is still coming up".into(), Some("`atoll down` stops all of it")),
        }
    }
}

impl Words for FreezeError {
    fn words(&self) -> (String, Option<&'static str>) {
        match self {
            Self::NoSuchComponent => no_such_component(),
            Self::Stopping => going_down(),
            Self::NotRunning => ("it does not serve at this moment".into(), Some("`atoll ps` shows how it is")),
        }
    }
}
