//! `#[interface]`, and the derives for what interfaces carry.
//!
//! * [`interface`] reads a trait into a model ([`parse`]), which is where everything a writer can get wrong is
//!   reported, at its place; then the model is written out as code ([`emit`]) and as data ([`describe`]).
//! * What is written out is listed in `docs/interfaces.md`. It names everything by absolute path.
#![forbid(unsafe_code)]

mod describe;
mod documentation;
mod emit;
mod object;
mod operation_error;
mod parse;
mod wire;

use proc_macro::TokenStream;
use syn::parse_macro_input;

/// Turns a trait into an interface: `Client`, `Blocking`, `Handler`, `Dispatcher`, `DESCRIPTION`, one type per object
/// kind and one constant per right, all beside the trait's place. The trait itself is not emitted.
///
/// ```text
/// #[interface("atoll.fs/1")]
/// pub trait Fs {
///     /// A file or directory.
///     type Node;                               // an object kind; the first one is the root's
///     /// Read what a node holds.
///     const READ: Rights;                      // a generic right that this interface uses
///     /// Find names in a directory.
///     const LOOKUP: Rights = 8;                // a right of its own: bit 8..=31
///     /// Documentation of the operation.
///     #[op(1, requires = LOOKUP, retry = cached, deadline = "5s")]
///     fn open(dir: Node, path: Path<'_>, want: Rights) -> Result<(Cap<Node>, Stat), LookupError>;
///     #[op(2, requires = LOOKUP | READ, retry = cached, deadline = none)]
///     fn link(dir: Node, #[requires(READ)] node: Node, name: Name<'_>) -> Result<(), LinkError>;
/// }
/// ```
///
/// Every key of `op` must be there, except `requires` for an operation that any holder may call.
#[proc_macro_attribute]
pub fn interface(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let name = parse_macro_input!(attribute as syn::LitStr);
    let item = parse_macro_input!(item as syn::ItemTrait);
    match parse::interface(&name, &item) {
        Ok(interface) => emit::interface(&interface).into(),
        Err(error) => error.into_compile_error().into(),
    }
}

/// Lets a struct, or an enum without fields, be an argument or result.
///
/// A struct is its fields in order. An enum is `#[repr(u8)]` with an explicit number for each variant, and is one byte;
/// a number without a variant is malformed. A field of packed elements says what they are, for whoever reads the
/// description: `#[packed(DirectoryEntry<'_>)] bytes: Vec<u8>`.
#[proc_macro_derive(Wire, attributes(packed))]
pub fn wire(item: TokenStream) -> TokenStream {
    let item = parse_macro_input!(item as syn::DeriveInput);
    wire::derive(&item).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Makes an enum the errors of an operation: `#[repr(u16)]`, an explicit number from 1 for each variant, fields as in
/// a struct. Its `Display` is the first sentence of each variant's documentation, with the fields behind it.
#[proc_macro_derive(OperationError)]
pub fn operation_error(item: TokenStream) -> TokenStream {
    let item = parse_macro_input!(item as syn::DeriveInput);
    operation_error::derive(&item).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Lets a host name its objects by a struct of at most two words: `#[kind(fs::Node)] struct Inode(u64);`.
#[proc_macro_derive(Object, attributes(kind))]
pub fn object(item: TokenStream) -> TokenStream {
    let item = parse_macro_input!(item as syn::DeriveInput);
    object::derive(&item).unwrap_or_else(syn::Error::into_compile_error).into()
}
