//! `#[migration]`: what a plugin declares beside such a function.

use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote};
use syn::{
    Error, Expr, ItemFn, Lit, MetaNameValue, Result, Token, parse::Parser, punctuated::Punctuated,
};

use crate::declared;

/// From which schema to which.
fn schemas(attribute: TokenStream) -> Result<(u32, u32)> {
    let expected = "from which schema to which is expected: `from = 2, to = 3`";
    let (mut from, mut to) = (None, None);
    for pair in Punctuated::<MetaNameValue, Token![,]>::parse_terminated.parse2(attribute)? {
        let number = match &pair.value {
            Expr::Lit(literal) if let Lit::Int(number) = &literal.lit => number.base10_parse()?,
            other => return Err(Error::new_spanned(other, "a number is expected")),
        };
        match pair.path.get_ident().map(ToString::to_string).as_deref() {
            Some("from") => from = Some(number),
            Some("to") => to = Some(number),
            _ => return Err(Error::new_spanned(&pair.path, expected)),
        }
    }
    match (from, to) {
        (Some(from), Some(to)) if from != to => Ok((from, to)),
        (Some(_), Some(_)) => Err(Error::new(
            Span::call_site(),
            "it ends with the schema that it begins with: leave it out",
        )),
        _ => Err(Error::new(Span::call_site(), expected)),
    }
}

/// `item` is the function.
pub(crate) fn expand(attribute: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let (from, to) = schemas(attribute)?;
    let function: ItemFn = syn::parse2(item)?;
    if function.sig.asyncness.is_none() || function.sig.inputs.len() != 2 {
        let message = "it is an `async fn` that takes a `Snapshot` and a `&mut Batch`, and gives a `Result<(), _>`";
        return Err(Error::new_spanned(&function.sig, message));
    }
    let ident = &function.sig.ident;
    let name = ident.to_string();
    let entry = format_ident!("__handover_migration_{}", name);
    let text = format_ident!("__handover_migration_{}_line", name);
    let line = format!("{{\"migration\":{{\"from\":{from},\"to\":{to}}}}}");
    let entry = declared::entry(&entry, &quote!(MIGRATION));
    let text = declared::line(&text, &line);
    Ok(quote! {
        #function

        const _: () = {
            use ::handover_plugin::__private as handover;
            use #ident as super_function;

            fn run(
                old: ::handover_plugin::Snapshot,
                new: &mut ::handover_plugin::Batch,
            ) -> handover::MigrationFuture<'_> {
                handover::run_migration(super_function(old, new))
            }

            static MIGRATION: handover::Migration = handover::Migration {
                name: #name,
                from: #from,
                to: #to,
                run,
            };

            #entry
            #text
        };
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn a_migration_goes_from_one_schema_to_another() {
        assert_eq!(schemas(quote!(from = 2, to = 3)).unwrap(), (2, 3));
        assert_eq!(schemas(quote!(to = 2, from = 3)).unwrap(), (3, 2));
        for wrong in [
            quote!(),
            quote!(from = 2),
            quote!(from = 2, to = 2),
            quote!(from = "2", to = 3),
            quote!(from = 2, to = 3, down = 1),
        ] {
            assert!(schemas(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_no_such_function_is_refused() {
        for wrong in [
            quote! { fn m(old: Snapshot, new: &mut Batch) -> Result<(), Error> { Ok(()) } },
            quote! { async fn m(new: &mut Batch) -> Result<(), Error> { Ok(()) } },
        ] {
            let error = expand(quote!(from = 2, to = 3), wrong).unwrap_err();
            assert!(error.to_string().contains("`&mut Batch`"), "{error}");
        }
    }
}
