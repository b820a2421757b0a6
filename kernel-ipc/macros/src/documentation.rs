//! What documentation says, for a description.

use syn::{Attribute, Expr, Lit, Meta};

/// The documentation among `attributes`.
pub fn docs(attributes: &[Attribute]) -> Vec<Attribute> {
    attributes.iter().filter(|attribute| attribute.path().is_ident("doc")).cloned().collect()
}

/// Its first sentence without the full stop, with code and links as plain words; empty if there is none.
pub fn first_sentence(attributes: &[Attribute]) -> String {
    let mut text = String::new();
    for attribute in docs(attributes) {
        if let Meta::NameValue(meta) = &attribute.meta
            && let Expr::Lit(literal) = &meta.value
            && let Lit::Str(line) = &literal.lit
        {
            if line.value().trim().is_empty() && !text.trim().is_empty() {
                break;
            }
            text.push_str(&line.value());
        }
    }
    let sentence = text.trim().split(". ").next().unwrap_or_default();
    plain(sentence.trim_end_matches('.'))
}

/// ``[`read`](Client::read)`` → `read`
fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['`', '[', ']']) {
        let (before, mark) = rest.split_at(at);
        plain.push_str(before);
        rest = &mark[1..];
        if mark.starts_with("](")
            && let Some(end) = rest.find(')')
        {
            rest = &rest[end + 1..];
        }
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use syn::parse_quote;

    use super::*;

    #[test]
    fn the_first_sentence_is_plain_text() {
        let of = |variant: syn::Variant| first_sentence(&variant.attrs);
        assert_eq!(of(parse_quote! { /** No such name. Try another. */ Gone = 1 }), "No such name");
        assert_eq!(
            of(parse_quote! { #[doc = " As [`read`](Client::read), [`MAX`] bytes."] Bad }),
            "As read, MAX bytes"
        );
        assert_eq!(of(parse_quote! { #[doc = " A title"] #[doc = ""] #[doc = " More."] Bad }), "A title");
        assert_eq!(of(parse_quote! { Bad }), "");
    }
}
