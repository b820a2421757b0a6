//! `#[derive(Wire)]`.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote};
use syn::{Data, DeriveInput, Error, Fields, GenericParam, Generics, Ident, Result};

use crate::describe;

/// Implements `Layout`, `Encode` and `Decode`.
pub fn derive(item: &DeriveInput) -> Result<TokenStream> {
    match &item.data {
        Data::Struct(data) => structure(item, &data.fields),
        Data::Enum(data) => enumeration(item, data),
        Data::Union(data) => Err(Error::new_spanned(data.union_token, "a union has no one meaning on the wire")),
    }
}

fn structure(item: &DeriveInput, fields: &Fields) -> Result<TokenStream> {
    let name = &item.ident;
    let Borrows { generics, arguments, lifetime } = borrows(&item.generics)?;
    let Parts { fixed, encode, decode, .. } = parts(fields);
    let (pattern, to, from) = (pattern(fields), to(), from());
    let describe = describe::layout(name, &describe::structure(&item.attrs, fields)?);
    Ok(quote! {
        impl #generics ::kernel_ipc::codec::Layout for #name #arguments {
            const FIXED_BYTES: usize = #fixed;

            #describe
        }

        impl #generics ::kernel_ipc::codec::Encode for #name #arguments {
            fn encode(&self, #to: &mut ::kernel_ipc::codec::Encoder) {
                let Self #pattern = self;
                #encode
            }
        }

        impl<#lifetime> ::kernel_ipc::codec::Decode<#lifetime> for #name #arguments {
            fn decode(
                #from: &mut ::kernel_ipc::codec::Decoder<#lifetime>,
            ) -> ::core::result::Result<Self, ::kernel_ipc::codec::Malformed> {
                #decode
                ::core::result::Result::Ok(Self #pattern)
            }
        }
    })
}

fn enumeration(item: &DeriveInput, data: &syn::DataEnum) -> Result<TokenStream> {
    let name = &item.ident;
    check_repr(item, "u8")?;
    let (mut variants, mut described) = (Vec::new(), Vec::new());
    for variant in &data.variants {
        if !matches!(variant.fields, Fields::Unit) {
            return Err(Error::new_spanned(&variant.fields, "a variant with fields has no fixed size; use a struct"));
        }
        let number = explicit_number(variant)?;
        described.push(describe::variant(variant, &number)?);
        variants.push((&variant.ident, number));
    }
    let describe = describe::layout(name, &describe::enumeration(&item.attrs, &described));
    let (names, numbers): (Vec<_>, Vec<_>) = variants.into_iter().unzip();
    Ok(quote! {
        impl ::kernel_ipc::codec::Layout for #name {
            const FIXED_BYTES: usize = 1;

            #describe
        }

        impl ::kernel_ipc::codec::Encode for #name {
            fn encode(&self, to: &mut ::kernel_ipc::codec::Encoder) {
                let number: u8 = match self {
                    #(Self::#names => #numbers,)*
                };
                to.fixed(&[number]);
            }
        }

        impl ::kernel_ipc::codec::Decode<'_> for #name {
            fn decode(
                from: &mut ::kernel_ipc::codec::Decoder<'_>,
            ) -> ::core::result::Result<Self, ::kernel_ipc::codec::Malformed> {
                match from.fixed::<1>()? {
                    #([#numbers] => ::core::result::Result::Ok(Self::#names),)*
                    _ => ::core::result::Result::Err(::kernel_ipc::codec::Malformed),
                }
            }
        }
    })
}

/// How a type borrows from the payload that it is decoded from.
struct Borrows {
    /// `<'a>` or nothing: the type's own parameters.
    generics: TokenStream,
    /// The same as arguments.
    arguments: TokenStream,
    /// Of the payload.
    lifetime: TokenStream,
}

fn borrows(generics: &Generics) -> Result<Borrows> {
    match generics.params.iter().collect::<Vec<_>>().as_slice() {
        [] => Ok(Borrows { generics: quote! {}, arguments: quote! {}, lifetime: quote! { 'payload } }),
        [GenericParam::Lifetime(lifetime)] => {
            let lifetime = lifetime.lifetime.to_token_stream();
            Ok(Borrows { generics: quote! { <#lifetime> }, arguments: quote! { <#lifetime> }, lifetime })
        }
        _ => Err(Error::new_spanned(generics, "at most one lifetime: that of the payload")),
    }
}

/// The code for a list of fields.
pub struct Parts {
    /// Sum of the fixed parts.
    pub fixed: TokenStream,
    /// Writes to [`to`], with each field bound by reference.
    pub encode: TokenStream,
    /// Binds each field by reading [`from`].
    pub decode: TokenStream,
}

/// Encoding and decoding of `fields`, each bound to its name.
pub fn parts(fields: &Fields) -> Parts {
    let names = names(fields);
    let types: Vec<_> = fields.iter().map(|field| &field.ty).collect();
    let (to, from) = (to(), from());
    Parts {
        fixed: quote! { 0 #(+ <#types as ::kernel_ipc::codec::Layout>::FIXED_BYTES)* },
        encode: quote! { #(::kernel_ipc::codec::Encode::encode(#names, #to);)* },
        decode: quote! { #(let #names = <#types as ::kernel_ipc::codec::Decode>::decode(#from)?;)* },
    }
}

/// Where [`Parts::encode`] writes. No field can have this name, whatever it is called.
pub fn to() -> Ident {
    Ident::new("to", Span::mixed_site())
}

/// Where [`Parts::decode`] reads. No field can have this name, whatever it is called.
pub fn from() -> Ident {
    Ident::new("from", Span::mixed_site())
}

/// A pattern, or constructor, that names every field.
pub fn pattern(fields: &Fields) -> TokenStream {
    let names = names(fields);
    match fields {
        Fields::Named(_) => quote! { { #(#names),* } },
        Fields::Unnamed(_) => quote! { ( #(#names),* ) },
        Fields::Unit => quote! {},
    }
}

/// Names of the fields; `field_0` and so on where they have none.
pub fn names(fields: &Fields) -> Vec<Ident> {
    let name = |(index, field): (usize, &syn::Field)| {
        field.ident.clone().unwrap_or_else(|| quote::format_ident!("field_{index}"))
    };
    fields.iter().enumerate().map(name).collect()
}

/// Numbers that cross processes are visible in the source.
pub fn check_repr(item: &DeriveInput, repr: &str) -> Result<()> {
    let mut found = false;
    for attribute in item.attrs.iter().filter(|attribute| attribute.path().is_ident("repr")) {
        attribute.parse_nested_meta(|meta| {
            found |= meta.path.is_ident(repr);
            Ok(())
        })?;
    }
    if found { Ok(()) } else { Err(Error::new(item.ident.span(), format!("expected `#[repr({repr})]`"))) }
}

/// The number that a variant was given in the source.
pub fn explicit_number(variant: &syn::Variant) -> Result<syn::LitInt> {
    match &variant.discriminant {
        Some((_, syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Int(number), .. }))) => Ok(number.clone()),
        _ => {
            let text = format!("give it a number that never changes: `{} = …`", variant.ident);
            Err(Error::new(variant.ident.span(), text))
        }
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
    fn numbers_must_be_written() {
        assert!(error(parse_quote! { #[repr(u8)] enum Kind { File = 1, Directory } }).contains("`Directory = …`"));
        assert!(error(parse_quote! { enum Kind { File = 1 } }).contains("#[repr(u8)]"));
        assert!(error(parse_quote! { #[repr(u16)] enum Kind { File = 1 } }).contains("#[repr(u8)]"));
    }

    #[test]
    fn what_has_no_fixed_size_is_refused() {
        assert!(error(parse_quote! { #[repr(u8)] enum Kind { File { size: u64 } = 1 } }).contains("use a struct"));
        assert!(error(parse_quote! { union Either { a: u8, b: u8 } }).contains("union"));
        assert!(error(parse_quote! { struct Page<T>(T); }).contains("at most one lifetime"));
        for packed in [
            parse_quote! { struct Page { #[packed(Entry)] entries: Vec<u16> } },
            parse_quote! { struct Page { #[packed(Entry)] #[packed(Other)] entries: Vec<u8> } },
        ] {
            assert!(error(packed).contains("in a `Vec<u8>`, of one type"));
        }
    }

    #[test]
    fn structs_and_plain_enums_are_accepted() {
        assert!(derive(&parse_quote! { struct Entry<'a> { inode: u64, name: &'a [u8] } }).is_ok());
        assert!(derive(&parse_quote! { struct Nothing; }).is_ok());
        assert!(derive(&parse_quote! { struct Page { #[packed(Entry<'_>)] entries: Vec<u8> } }).is_ok());
        assert!(derive(&parse_quote! { #[repr(u8)] enum Kind { File = 1, Directory = 2 } }).is_ok());
    }
}
