//! `#[app]`: what a plugin exports around its constructor.

use proc_macro2::{Span, TokenStream};
use quote::quote;
use syn::{
    Error, Expr, ItemFn, Lit, LitStr, MetaNameValue, Result, Token, parse::Parser,
    punctuated::Punctuated,
};

struct Arguments {
    name: Option<LitStr>,
    schema: u32,
}

fn arguments(tokens: TokenStream) -> Result<Arguments> {
    let mut arguments = Arguments {
        name: None,
        schema: 0,
    };
    for pair in Punctuated::<MetaNameValue, Token![,]>::parse_terminated.parse2(tokens)? {
        let Expr::Lit(value) = &pair.value else {
            return Err(Error::new_spanned(&pair.value, "a literal is expected"));
        };
        match (
            pair.path.get_ident().map(ToString::to_string).as_deref(),
            &value.lit,
        ) {
            (Some("name"), Lit::Str(name)) => {
                let text = name.value();
                let fits = matches!(text.len(), 1..=64)
                    && text
                        .bytes()
                        .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
                    && !text.starts_with(['-', '_']);
                if !fits {
                    let message = "an app name is 1 to 64 of a-z, 0-9, - and _, beginning with a letter or digit";
                    return Err(Error::new_spanned(name, message));
                }
                arguments.name = Some(name.clone());
            }
            (Some("schema"), Lit::Int(schema)) => arguments.schema = schema.base10_parse()?,
            _ => {
                return Err(Error::new_spanned(
                    &pair,
                    "expected `name = \"…\"` or `schema = N`",
                ));
            }
        }
    }
    Ok(arguments)
}

pub(crate) fn expand(attribute: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let Arguments { name, schema } = arguments(attribute)?;
    let function: ItemFn = syn::parse2(item)?;
    if function.sig.inputs.len() != 1 {
        let message = "the constructor of an app takes one argument, a `handover_plugin::Context`";
        return Err(Error::new_spanned(&function.sig, message));
    }
    let ident = &function.sig.ident;
    let call = if function.sig.asyncness.is_some() {
        quote!(#ident(cx))
    } else {
        quote!(::core::future::ready(#ident(cx)))
    };
    let name = name.map_or_else(
        || quote!(::core::env!("CARGO_PKG_NAME")),
        |name| quote!(#name),
    );
    let symbol = LitStr::new(
        &abi_stable_shared::mangled_root_module_loader_name(),
        Span::call_site(),
    );
    Ok(quote! {
        #function

        const _: () = {
            use ::handover_plugin::__private as handover;

            struct App;

            impl handover::Entry for App {
                fn start(
                    host: handover::HostHandle,
                    settings: handover::Lent<'_, handover::Settings<'_>>,
                ) -> ::core::result::Result<::std::boxed::Box<dyn handover::Plugin>, ::std::string::String> {
                    handover::start(host, settings, |cx| #call)
                }
            }

            #[unsafe(export_name = #symbol)]
            static HEADER: handover::LibHeader = handover::header::<App>();

            const FACTS: handover::Facts = handover::Facts {
                app: #name,
                version: match ::core::option_env!("HANDOVER_VERSION") {
                    ::core::option::Option::Some(version) => version,
                    ::core::option::Option::None => ::core::env!("CARGO_PKG_VERSION"),
                },
                schema: #schema,
                profile: if ::core::cfg!(debug_assertions) { "debug" } else { "release" },
                panic: if ::core::cfg!(panic = "abort") { "abort" } else { "unwind" },
                commit: match ::core::option_env!("HANDOVER_COMMIT") {
                    ::core::option::Option::Some(commit) => commit,
                    ::core::option::Option::None => "",
                },
            };

            ::handover_plugin::__own_heap!();

            #[used]
            #[unsafe(no_mangle)]
            #[unsafe(link_section = ".handover.manifest")]
            static HANDOVER_MANIFEST: [u8; FACTS.length()] = FACTS.section();
        };
    })
}
