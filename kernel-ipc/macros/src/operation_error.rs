//! `#[derive(OperationError)]`.

use proc_macro2::{Ident, Span, TokenStream};
use quote::quote;
use syn::{Data, DeriveInput, Error, Fields, Result, Variant};

use crate::describe;
use crate::documentation;
use crate::wire::{Parts, check_repr, explicit_number, from, names, parts, pattern, to};

/// Implements `OperationError`, `Display` and `Error`.
pub fn derive(item: &DeriveInput) -> Result<TokenStream> {
    let name = &item.ident;
    let Data::Enum(data) = &item.data else {
        return Err(Error::new(name.span(), "the errors of an operation are an enum"));
    };
    if !item.generics.params.is_empty() {
        return Err(Error::new_spanned(&item.generics, "the errors of an operation own what they hold"));
    }
    check_repr(item, "u16")?;

    let (to, from) = (to(), from());
    let local = |name| Ident::new(name, Span::mixed_site());
    let (encoder, decoder) = (local("encoder"), local("decoder"));
    let (mut numbers, mut encodes, mut decodes, mut displays) = (vec![], vec![], vec![], vec![]);
    let mut described = Vec::new();
    for variant in &data.variants {
        let number = explicit_number(variant)?;
        if number.base10_parse::<u16>()? == 0 {
            return Err(Error::new(number.span(), "numbers of errors begin at 1"));
        }
        let ident = &variant.ident;
        let pattern = pattern(&variant.fields);
        let Parts { fixed, encode, decode } = parts(&variant.fields);
        numbers.push(match &variant.fields {
            Fields::Unit => quote! { Self::#ident => #number, },
            Fields::Named(_) => quote! { Self::#ident { .. } => #number, },
            Fields::Unnamed(_) => quote! { Self::#ident(..) => #number, },
        });
        encodes.push(quote! {
            Self::#ident #pattern => {
                #[allow(unused_mut, reason = "an error may have no fields")]
                let mut #encoder = ::kernel_ipc::codec::Encoder::new(#fixed);
                #[allow(unused_variables, reason = "an error may have no fields")]
                let #to = &mut #encoder;
                #encode
                #encoder
            }
        });
        decodes.push(quote! {
            #number => {
                let mut #decoder = ::kernel_ipc::codec::Decoder::new(#fixed, payload)?;
                #[allow(unused_variables, reason = "an error may have no fields")]
                let #from = &mut #decoder;
                #decode
                #decoder.finish()?;
                ::core::result::Result::Ok(Self::#ident #pattern)
            }
        });
        displays.push(display(variant)?);
        described.push(describe::variant(variant, &number)?);
    }
    let set = name.to_string();
    Ok(quote! {
        impl ::kernel_ipc::interface::OperationError for #name {
            fn describe(
                types: &mut ::kernel_ipc::described::Types,
            ) -> (&'static str, ::std::vec::Vec<::kernel_ipc::described::Variant>) {
                let _ = &types;
                (#set, ::std::vec![#(#described),*])
            }

            fn number(&self) -> u16 {
                match self { #(#numbers)* }
            }

            fn encode(&self) -> ::kernel_ipc::codec::Encoder {
                match self { #(#encodes)* }
            }

            fn decode(
                number: u16,
                payload: &[u8],
            ) -> ::core::result::Result<Self, ::kernel_ipc::codec::Malformed> {
                match number {
                    #(#decodes)*
                    _ => ::core::result::Result::Err(::kernel_ipc::codec::Malformed),
                }
            }
        }

        impl ::core::fmt::Display for #name {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                match self { #(#displays)* }
            }
        }

        impl ::core::error::Error for #name {}
    })
}

/// "the data fails its checksum (block 5)"
fn display(variant: &Variant) -> Result<TokenStream> {
    let text = first_sentence(variant)?;
    let ident = &variant.ident;
    let pattern = pattern(&variant.fields);
    let fields = names(&variant.fields);
    if fields.is_empty() {
        return Ok(quote! { Self::#ident #pattern => f.write_str(#text), });
    }
    let labels = fields.iter().map(|field| format!("{} {{{field}}}", field.to_string().replace('_', " ")));
    let format = format!("{} ({})", text.replace('{', "{{").replace('}', "}}"), labels.collect::<Vec<_>>().join(", "));
    Ok(quote! { Self::#ident #pattern => ::core::write!(f, #format), })
}

/// The first sentence of the documentation, without its full stop and with a small first letter.
fn first_sentence(variant: &Variant) -> Result<String> {
    let sentence = documentation::first_sentence(&variant.attrs);
    let mut characters = sentence.chars();
    match characters.next() {
        // An abbreviation keeps its capitals.
        Some(first) if !characters.as_str().starts_with(char::is_uppercase) => {
            Ok(first.to_lowercase().chain(characters).collect())
        }
        Some(_) => Ok(sentence),
        None => Err(Error::new(variant.ident.span(), "document it: the first sentence is its text")),
    }
}

#[cfg(test)]
mod tests {
    use syn::parse_quote;

    use super::*;

    fn error(item: DeriveInput) -> String {
        derive(&item).expect_err("the item is wrong").to_string()
    }

    #[test]
    fn each_error_needs_a_number_and_a_sentence() {
        assert!(error(parse_quote! { #[repr(u16)] enum E { /** Gone. */ Gone } }).contains("`Gone = …`"));
        assert!(error(parse_quote! { #[repr(u16)] enum E { /** Gone. */ Gone = 0 } }).contains("begin at 1"));
        assert!(error(parse_quote! { #[repr(u16)] enum E { Gone = 1 } }).contains("document it"));
        assert!(error(parse_quote! { enum E { /** Gone. */ Gone = 1 } }).contains("#[repr(u16)]"));
        assert!(error(parse_quote! { #[repr(u16)] struct E; }).contains("an enum"));
    }

    #[test]
    fn the_text_of_an_error_is_its_first_sentence() {
        let text = |variant: Variant| first_sentence(&variant).expect("it is documented");
        assert_eq!(text(parse_quote! { /** No such name. Try another. */ Gone = 1 }), "no such name");
        assert_eq!(
            text(parse_quote! { #[doc = " The data fails"] #[doc = " its `CRC`."] Bad = 1 }),
            "the data fails its CRC"
        );
        assert_eq!(text(parse_quote! { /** CRC mismatch */ Bad = 1 }), "CRC mismatch");
    }
}
