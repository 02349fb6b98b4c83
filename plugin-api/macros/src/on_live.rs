//! `#[on_live]`: what a plugin declares beside such a function.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{Error, ItemFn, Result};

use crate::declared;

/// `item` is the function.
pub(crate) fn expand(attribute: TokenStream, item: TokenStream) -> Result<TokenStream> {
    if !attribute.is_empty() {
        return Err(Error::new_spanned(attribute, "it takes no arguments"));
    }
    let function: ItemFn = syn::parse2(item)?;
    if function.sig.asyncness.is_none() || function.sig.inputs.len() != 1 {
        let message = "it is an `async fn` that takes a `Context`, and gives a `Result<(), _>`";
        return Err(Error::new_spanned(&function.sig, message));
    }
    let ident = &function.sig.ident;
    let name = ident.to_string();
    let entry = format_ident!("__handover_on_live_{}", name);
    let entry = declared::entry(&entry, &quote!(ON_LIVE));
    Ok(quote! {
        #function

        const _: () = {
            use ::handover_plugin::__private as handover;
            use #ident as super_function;

            static ON_LIVE: handover::OnLive = handover::OnLive {
                name: #name,
                run: |cx| handover::run_on_live(super_function(cx)),
            };

            #entry
        };
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_such_function_is_refused() {
        for (attribute, item) in [
            (
                quote!(name = "x"),
                quote!(
                    async fn migrate(cx: Context) -> Result<(), Error> {
                        Ok(())
                    }
                ),
            ),
            (
                quote!(),
                quote!(
                    fn migrate(cx: Context) -> Result<(), Error> {
                        Ok(())
                    }
                ),
            ),
            (
                quote!(),
                quote!(
                    async fn migrate() -> Result<(), Error> {
                        Ok(())
                    }
                ),
            ),
        ] {
            expand(attribute, item).expect_err("refused");
        }
    }
}
