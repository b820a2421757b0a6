//! `#[derive(Object)]`.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Data, DeriveInput, Error, Fields, Path, Result, Type};

/// Implements `Object` for a struct of at most two words.
pub fn derive(item: &DeriveInput) -> Result<TokenStream> {
    let name = &item.ident;
    let kind = kind(item)?;
    let wrong =
        || Error::new(name.span(), "an object is `struct Name;`, `struct Name(u64);` or `struct Name(u64, u64);`");
    let Data::Struct(data) = &item.data else { return Err(wrong()) };
    if !item.generics.params.is_empty() {
        return Err(wrong());
    }
    let words = match &data.fields {
        Fields::Unit => 0,
        Fields::Unnamed(fields) if fields.unnamed.iter().all(|field| is_word(&field.ty)) => fields.unnamed.len(),
        _ => return Err(wrong()),
    };
    let (to, from) = match words {
        0 => (quote! { [0, 0] }, quote! { #name }),
        1 => (quote! { [self.0, 0] }, quote! { #name(words[0]) }),
        2 => (quote! { [self.0, self.1] }, quote! { #name(words[0], words[1]) }),
        _ => return Err(wrong()),
    };
    Ok(quote! {
        impl ::kernel_ipc::interface::Object for #name {
            type Kind = #kind;

            fn to_words(&self) -> [u64; 2] {
                #to
            }

            fn from_words(words: [u64; 2]) -> Self {
                let _ = words;
                #from
            }
        }
    })
}

/// `#[kind(fs::Node)]`
fn kind(item: &DeriveInput) -> Result<Path> {
    let mut kinds = item.attrs.iter().filter(|attribute| attribute.path().is_ident("kind"));
    match (kinds.next(), kinds.next()) {
        (Some(kind), None) => kind.parse_args(),
        _ => Err(Error::new(item.ident.span(), "say which object kind it is, once: `#[kind(fs::Node)]`")),
    }
}

fn is_word(ty: &Type) -> bool {
    matches!(ty, Type::Path(path) if path.path.is_ident("u64"))
}

#[cfg(test)]
mod tests {
    use syn::parse_quote;

    use super::*;

    #[test]
    fn an_object_is_at_most_two_words_of_one_kind() {
        assert!(derive(&parse_quote! { #[kind(fs::Node)] struct Inode(u64); }).is_ok());
        assert!(derive(&parse_quote! { #[kind(fs::Node)] struct Inode(u64, u64); }).is_ok());
        assert!(derive(&parse_quote! { #[kind(Node)] struct Root; }).is_ok());
        let wrong: [(DeriveInput, &str); 6] = [
            (parse_quote! { struct Inode(u64); }, "#[kind(fs::Node)]"),
            (parse_quote! { #[kind(A)] #[kind(B)] struct Inode(u64); }, "once"),
            (parse_quote! { #[kind(Node)] struct Inode(u32); }, "struct Name(u64);"),
            (parse_quote! { #[kind(Node)] struct Inode(u64, u64, u64); }, "struct Name(u64);"),
            (parse_quote! { #[kind(Node)] struct Inode { number: u64 } }, "struct Name(u64);"),
            (parse_quote! { #[kind(Node)] enum Inode { A } }, "struct Name(u64);"),
        ];
        for (item, expected) in wrong {
            let text = derive(&item).expect_err("the item is wrong").to_string();
            assert!(text.contains(expected), "{text}");
        }
    }
}
