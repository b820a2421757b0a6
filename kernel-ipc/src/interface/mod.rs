//! What `#[interface]` builds on: the description of an interface, and the typed ends of a call.

mod description;

pub use description::{Description, HandleArgument, Operation, Retry};
