//! From the model of an interface to its code. Nothing here can fail: what is wrong was found by `parse`.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{format_ident, quote};
use syn::Type;
use syn::visit_mut::{self, VisitMut};

use crate::describe;
use crate::parse::{Argument, Content, Interface, Operation, Retry};

/// Everything that `#[interface]` puts beside the trait's place.
pub fn interface(interface: &Interface) -> TokenStream {
    let kinds = kinds(interface);
    let rights = rights(interface);
    let description = describe::interface(interface);
    let client = client(interface);
    let blocking = blocking(interface);
    let handler = handler(interface);
    let dispatcher = dispatcher(interface);
    quote! { #kinds #rights #description #client #blocking #handler #dispatcher }
}

fn kinds(interface: &Interface) -> TokenStream {
    interface
        .kinds
        .iter()
        .zip(1u8..)
        .map(|(kind, number)| {
            let (docs, name) = (&kind.docs, &kind.name);
            quote! {
                #(#docs)*
                #[derive(Clone, Copy, Debug, PartialEq, Eq)]
                pub enum #name {}

                impl ::kernel_ipc::interface::Kind for #name {
                    const NUMBER: u8 = #number;
                }
            }
        })
        .collect()
}

fn rights(interface: &Interface) -> TokenStream {
    let constants = interface.rights.iter().map(|right| {
        let (docs, name, bits) = (&right.docs, &right.name, right.bits);
        quote! {
            #(#docs)*
            pub const #name: ::kernel_ipc::Rights = ::kernel_ipc::Rights::from_bits_retain(#bits);
        }
    });
    quote! { #(#constants)* }
}

fn client(interface: &Interface) -> TokenStream {
    let (name, docs) = (&interface.name, &interface.docs);
    let text = format!("A client of `{name}`. Cheap to clone; all clones are one connection, of one thread.");
    let debug = format!("Client({name})");
    let root = root_kind(interface);
    let methods = interface.operations.iter().enumerate().map(|(index, operation)| client_method(index, operation));
    quote! {
        #[doc = #text]
        #[doc = ""]
        #(#docs)*
        #[derive(Clone)]
        pub struct Client {
            connection: ::kernel_ipc::interface::Connection,
            root: ::std::rc::Rc<::kernel_ipc::interface::Cap<#root>>,
        }

        impl ::kernel_ipc::interface::Connect for Client {
            const INTERFACE: &'static str = #name;

            fn from_connection(connection: ::kernel_ipc::interface::Connection) -> Self {
                let root = ::kernel_ipc::interface::Cap::root(connection.clone());
                Client { connection, root: ::std::rc::Rc::new(root) }
            }
        }

        impl ::core::fmt::Debug for Client {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                f.write_str(#debug)
            }
        }

        impl Client {
            /// What this client was connected to: the capability with which everything begins.
            pub fn root(&self) -> &::kernel_ipc::interface::Cap<#root> {
                &self.root
            }

            /// The connection under this client.
            pub fn connection(&self) -> &::kernel_ipc::interface::Connection {
                &self.connection
            }

            /// The same operations without `await`, for a thread that runs no executor.
            pub fn blocking(&self) -> Blocking<'_> {
                Blocking { client: self, deadline: ::core::option::Option::None }
            }

            #(#methods)*
        }
    }
}

fn client_method(index: usize, operation: &Operation) -> TokenStream {
    let Operation { docs, name, target, target_kind, result, error, .. } = operation;
    let facts = facts(operation);
    let parameters = client_parameters(operation);
    let fixed = fixed_bytes(operation);
    // Unlike the other names here, a parameter may have this one.
    let arguments = Ident::new("arguments", Span::mixed_site());
    let writes = operation.arguments.iter().map(|argument| {
        let name = &argument.name;
        match &argument.content {
            Content::Handle { .. } => quote! { #arguments.capability(#name); },
            Content::Value(_) => quote! { #arguments.value(&#name); },
        }
    });
    quote! {
        #(#docs)*
        #[doc = ""]
        #[doc = #facts]
        pub fn #name<'a>(
            &'a self,
            #target: &'a ::kernel_ipc::interface::Cap<#target_kind>,
            #(#parameters),*
        ) -> ::kernel_ipc::interface::Pending<
            impl ::kernel_ipc::interface::Start<
                Output = ::core::result::Result<#result, ::kernel_ipc::CallError<#error>>,
            > + use<'a>,
        > {
            #[allow(unused_mut, reason = "an operation may have no arguments")]
            let mut #arguments = ::kernel_ipc::interface::Arguments::new(#target, #fixed);
            #(#writes)*
            #arguments.call(&DESCRIPTION.operations[#index])
        }
    }
}

/// The annotations as a sentence of documentation.
fn facts(operation: &Operation) -> String {
    let retry = match operation.retry {
        Retry::Idempotent => "idempotent: run again when the host dies",
        Retry::Cached => "at most once",
        Retry::Never => "never repeated",
    };
    let deadline = match operation.deadline_ns {
        Some(ns) => format!("{:?}", std::time::Duration::from_nanos(ns)),
        None => "none".into(),
    };
    let at_once = if operation.at_once { "; answered at once" } else { "" };
    format!("*Operation {}; {retry}; default deadline {deadline}{at_once}.*", operation.number)
}

/// Parameters behind the target, with capabilities borrowed for as long as the call.
fn client_parameters(operation: &Operation) -> Vec<TokenStream> {
    let parameter = |argument: &Argument| {
        let name = &argument.name;
        match &argument.content {
            Content::Handle { kind, .. } => quote! { #name: &'a ::kernel_ipc::interface::Cap<#kind> },
            Content::Value(ty) => quote! { #name: #ty },
        }
    };
    operation.arguments.iter().map(parameter).collect()
}

/// Size of the arguments' fixed part, as an expression.
fn fixed_bytes(operation: &Operation) -> TokenStream {
    let sizes = operation.arguments.iter().filter_map(|argument| match &argument.content {
        Content::Handle { .. } => None,
        Content::Value(ty) => Some(quote! { + <#ty as ::kernel_ipc::codec::Layout>::FIXED_BYTES }),
    });
    quote! { 0 #(#sizes)* }
}

fn blocking(interface: &Interface) -> TokenStream {
    let methods = interface.operations.iter().map(|operation| {
        let Operation { docs, name, target, target_kind, result, error, .. } = operation;
        let parameters = client_parameters(operation);
        let names = operation.arguments.iter().map(|argument| &argument.name);
        quote! {
            #(#docs)*
            pub fn #name(
                &self,
                #target: &'a ::kernel_ipc::interface::Cap<#target_kind>,
                #(#parameters),*
            ) -> ::core::result::Result<#result, ::kernel_ipc::CallError<#error>> {
                self.client.#name(#target, #(#names),*).or_deadline(self.deadline).wait()
            }
        }
    });
    quote! {
        /// The operations of a [`Client`] for a thread that runs no executor: each waits for its answer.
        #[derive(Clone, Copy, Debug)]
        pub struct Blocking<'a> {
            client: &'a Client,
            deadline: ::core::option::Option<::core::time::Duration>,
        }

        impl<'a> Blocking<'a> {
            /// The same, waiting no longer than `deadline` for each call.
            pub fn deadline(self, deadline: ::core::time::Duration) -> Blocking<'a> {
                Blocking { deadline: ::core::option::Option::Some(deadline), ..self }
            }

            #(#methods)*
        }
    }
}

fn handler(interface: &Interface) -> TokenStream {
    let text = format!("What serves `{}`. One value serves every session of its endpoint.", interface.name);
    let kinds = interface.kinds.iter().map(|kind| {
        let (docs, name) = (&kind.docs, &kind.name);
        quote! {
            #(#docs)*
            type #name: ::kernel_ipc::interface::Object<Kind = #name>;
        }
    });
    let methods = interface.operations.iter().map(|operation| {
        let Operation { docs, name, target, target_kind, error, .. } = operation;
        let facts = facts(operation);
        let result = handler_result(operation);
        let parameters = operation.arguments.iter().map(|argument| {
            let name = &argument.name;
            match &argument.content {
                Content::Handle { kind, .. } => quote! { #name: ::kernel_ipc::interface::Granted<Self::#kind> },
                Content::Value(ty) => {
                    let ty = owned_lists(ty);
                    quote! { #name: #ty }
                }
            }
        });
        let answer = quote! { ::core::result::Result<#result, ::kernel_ipc::CallError<#error>> };
        let answer = match operation.at_once {
            true => answer,
            false => quote! { impl ::core::future::Future<Output = #answer> },
        };
        quote! {
            #(#docs)*
            #[doc = ""]
            #[doc = #facts]
            fn #name(
                &self,
                call: &::kernel_ipc::session::Call,
                #target: ::kernel_ipc::interface::Granted<Self::#target_kind>,
                #(#parameters),*
            ) -> #answer;
        }
    });
    let dropped = interface.kinds.iter().map(|kind| {
        let (name, method) = (&kind.name, dropped_method(&kind.name));
        let text = format!("A session released a capability of kind `{name}`, or ended with it.");
        quote! {
            #[doc = #text]
            fn #method(
                &self,
                _session: &::kernel_ipc::session::SessionInfo,
                _object: ::kernel_ipc::interface::Granted<Self::#name>,
            ) {
            }
        }
    });
    quote! {
        #[doc = #text]
        #[doc = ""]
        #[doc = "Before an operation runs, its target, handle arguments, rights and encoding were checked."]
        pub trait Handler: 'static {
            #(#kinds)*
            #(#methods)*
            #(#dropped)*

            /// Whether sessions go on in the host's next incarnation: its state is in ledgers and on disk. Without it a
            /// host's death ends its sessions.
            const SURVIVES: bool = false;

            /// The client of a session has died, and the session ends by it: comes before its capabilities are dropped.
            fn client_died(&self, _session: &::kernel_ipc::session::SessionInfo) {}

            /// A session has ended, in order or not. Its capabilities were dropped before.
            fn closed(&self, _session: &::kernel_ipc::session::SessionInfo) {}
        }
    }
}

fn dispatcher(interface: &Interface) -> TokenStream {
    let of = |at_once: bool| interface.operations.iter().filter(move |operation| operation.at_once == at_once);
    let arms = of(false).map(dispatch_arm);
    let (numbers, arms_at_once) = (of(true).map(|operation| operation.number), of(true).map(dispatch_arm));
    let dropped = interface.kinds.iter().zip(1u8..).map(|(kind, number)| {
        let method = dropped_method(&kind.name);
        quote! { #number => self.0.#method(session, ::kernel_ipc::interface::Granted::new(capability)), }
    });
    quote! {
        /// Decodes calls for a [`Handler`] and encodes its answers.
        #[derive(Debug)]
        pub struct Dispatcher<H>(pub H);

        impl<H: Handler> ::kernel_ipc::session::Service for Dispatcher<H> {
            const INTERFACE: &'static ::kernel_ipc::interface::Description = &DESCRIPTION;
            const SURVIVES: bool = <H as Handler>::SURVIVES;
            const ANSWERS_AT_ONCE: bool = true;

            async fn serve(&self, call: &mut ::kernel_ipc::session::Call) -> ::kernel_ipc::session::Response {
                let call: &::kernel_ipc::session::Call = call;
                match call.operation() {
                    #(#arms)*
                    #(#numbers => ::kernel_ipc::session::Service::serve_at_once(self, call).into(),)*
                    _ => ::kernel_ipc::interface::refuse(::kernel_ipc::Cause::UnknownOperation),
                }
            }

            fn serve_at_once(
                &self,
                call: &::kernel_ipc::session::Call,
            ) -> ::core::result::Result<::kernel_ipc::session::Brief, ::kernel_ipc::Failure> {
                match call.operation() {
                    #(#arms_at_once)*
                    _ => ::kernel_ipc::interface::refuse(::kernel_ipc::Cause::UnknownOperation),
                }
            }

            fn dropped(
                &self,
                session: &::kernel_ipc::session::SessionInfo,
                capability: &::kernel_ipc::capability::Grant,
            ) {
                match capability.kind {
                    #(#dropped)*
                    _ => {}
                }
            }

            fn client_died(&self, session: &::kernel_ipc::session::SessionInfo) {
                self.0.client_died(session);
            }

            fn closed(&self, session: &::kernel_ipc::session::SessionInfo) {
                self.0.closed(session);
            }
        }

        impl<H: Handler + ::kernel_ipc::session::Movable> ::kernel_ipc::session::Movable for Dispatcher<H> {
            type State = H::State;

            fn leave(&self, session: &::kernel_ipc::session::SessionInfo) -> Self::State {
                self.0.leave(session)
            }

            fn arrive(&self, session: &::kernel_ipc::session::SessionInfo, state: Self::State) {
                self.0.arrive(session, state);
            }
        }
    }
}

fn dispatch_arm(operation: &Operation) -> TokenStream {
    let Operation { number, name, .. } = operation;
    let fixed = fixed_bytes(operation);
    let mut handle_index = 0usize;
    let mut names = Vec::new();
    let mut reads = Vec::new();
    for argument in &operation.arguments {
        let name = format_ident!("argument_{}", argument.name);
        reads.push(match &argument.content {
            Content::Handle { .. } => {
                let index = handle_index;
                handle_index += 1;
                quote! {
                    let #name = ::kernel_ipc::interface::Granted::new(
                        call.capability(#index).ok_or(::kernel_ipc::codec::Malformed)?,
                    );
                }
            }
            Content::Value(ty) => {
                let ty = owned_lists(ty);
                quote! { let #name: #ty = ::kernel_ipc::codec::Decode::decode(&mut payload)?; }
            }
        });
        names.push(name);
    }
    let (answer, wait) = match operation.at_once {
        true => (quote! { answer_at_once }, None),
        false => (quote! { answer }, Some(quote! { .await })),
    };
    quote! {
        #number => {
            let decoded = (|| {
                #[allow(unused_mut, reason = "an operation may have no arguments")]
                let mut payload = ::kernel_ipc::codec::Decoder::new(#fixed, call.payload())?
                    .with_leases(call.leases());
                #(#reads)*
                payload.finish()?;
                ::core::result::Result::<_, ::kernel_ipc::codec::Malformed>::Ok((#(#names,)*))
            })();
            let ::core::result::Result::Ok((#(#names,)*)) = decoded else {
                return ::kernel_ipc::interface::refuse(::kernel_ipc::Cause::BadArguments);
            };
            let target = ::kernel_ipc::interface::Granted::new(call.target());
            ::kernel_ipc::interface::#answer(self.0.#name(call, target, #(#names),*) #wait)
        }
    }
}

fn root_kind(interface: &Interface) -> &Ident {
    &interface.kinds.first().expect("an interface has a kind: checked by parse").name
}

/// `Node` → `node_dropped`, `PortRange` → `port_range_dropped`
fn dropped_method(kind: &Ident) -> Ident {
    let mut name = String::new();
    for c in kind.to_string().chars() {
        if c.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.extend(c.to_lowercase());
    }
    format_ident!("{name}_dropped")
}

/// The result as a handler gives it: `Cap<Node>` → `NewCap<Self::Node>`, `Lease` → `Lend`.
fn handler_result(operation: &Operation) -> Type {
    let mut result = operation.result.clone();
    HostSide.visit_type_mut(&mut result);
    result
}

struct HostSide;

impl VisitMut for HostSide {
    fn visit_type_mut(&mut self, ty: &mut Type) {
        if let Type::Path(path) = ty
            && let Some(last) = path.path.segments.last()
        {
            if last.ident == "Cap"
                && let syn::PathArguments::AngleBracketed(kind) = &last.arguments
            {
                let kind = &kind.args;
                *ty = syn::parse_quote! { ::kernel_ipc::interface::NewCap<Self::#kind> };
                return;
            }
            if last.ident == "Lease" && last.arguments.is_none() {
                *ty = syn::parse_quote! { ::kernel_ipc::lease::Lend };
                return;
            }
        }
        visit_mut::visit_type_mut(self, ty);
    }
}

/// An argument as a handler receives it: bytes and text stay borrowed, `&[T]` becomes `Vec<T>`.
fn owned_lists(ty: &Type) -> Type {
    if let Type::Reference(reference) = ty
        && let Type::Slice(slice) = &*reference.elem
        && !matches!(&*slice.elem, Type::Path(path) if path.path.is_ident("u8"))
    {
        let element = &slice.elem;
        return syn::parse_quote! { ::std::vec::Vec<#element> };
    }
    ty.clone()
}
