//! `#[db_revision]`: what a plugin declares beside such a function.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{Error, Expr, ExprRange, ItemFn, Lit, RangeLimits, Result};

use crate::declared;

/// The number of a bound.
fn bound(bound: &Expr) -> Result<u64> {
    match bound {
        Expr::Lit(literal) if let Lit::Int(number) = &literal.lit => number.base10_parse(),
        other => Err(Error::new_spanned(other, "a number is expected")),
    }
}

/// The revisions that are named: `3..=5`, `3..` or `3`.
fn revisions(attribute: TokenStream) -> Result<(u64, u64)> {
    let expected = "which revisions it runs with is expected: `3..=5`, `3..` or `3`";
    if attribute.is_empty() {
        return Err(Error::new(proc_macro2::Span::call_site(), expected));
    }
    let expression: Expr = syn::parse2(attribute)?;
    let (min, max) = match &expression {
        Expr::Range(ExprRange {
            start: Some(start),
            end,
            limits,
            ..
        }) => match (limits, end) {
            (RangeLimits::Closed(_), Some(end)) => (bound(start)?, bound(end)?),
            (RangeLimits::HalfOpen(_), None) => (bound(start)?, u64::MAX),
            _ => return Err(Error::new_spanned(&expression, expected)),
        },
        Expr::Lit(_) => {
            let only = bound(&expression)?;
            (only, only)
        }
        other => return Err(Error::new_spanned(other, expected)),
    };
    if min > max {
        return Err(Error::new_spanned(&expression, "there is none between"));
    }
    Ok((min, max))
}

/// `item` is the function.
pub(crate) fn expand(attribute: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let (min, max) = revisions(attribute)?;
    let function: ItemFn = syn::parse2(item)?;
    if function.sig.asyncness.is_none() || function.sig.inputs.len() != 1 {
        let message = "it is an `async fn` that takes a `Context`, and gives a `Result<u64, _>`";
        return Err(Error::new_spanned(&function.sig, message));
    }
    let ident = &function.sig.ident;
    let name = ident.to_string();
    let entry = format_ident!("__handover_db_revision_{}", name);
    let text = format_ident!("__handover_db_revision_{}_line", name);
    let line = format!("{{\"db\":{{\"min\":{min},\"max\":{max}}}}}");
    let entry = declared::entry(&entry, &quote!(DB_REVISION));
    let text = declared::line(&text, &line);
    Ok(quote! {
        #function

        const _: () = {
            use ::handover_plugin::__private as handover;
            use #ident as super_function;

            static DB_REVISION: handover::DbRevision = handover::DbRevision {
                name: #name,
                run: |cx| handover::run_db_revision(super_function(cx)),
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
    fn revisions_are_ranges_as_rust_has_them() {
        assert_eq!(revisions(quote!(3..=5)).unwrap(), (3, 5));
        assert_eq!(revisions(quote!(3..)).unwrap(), (3, u64::MAX));
        assert_eq!(
            revisions(quote!(20_260_101_120_000)).unwrap().0,
            20_260_101_120_000
        );
        for refused in [
            quote!(),
            quote!(5..=3),
            quote!(3..5),
            quote!(..=5),
            quote!(a..=5),
        ] {
            revisions(refused).expect_err("refused");
        }
    }

    #[test]
    fn what_is_no_such_function_is_refused() {
        let item = quote!(
            fn revision(cx: Context) -> Result<u64, Error> {
                Ok(3)
            }
        );
        expand(quote!(3), item).expect_err("refused");
    }
}
