//! `#[app]` and `#[main]`: what a plugin exports around its constructor.

use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote};
use syn::{
    Error, Expr, ItemFn, Lit, LitStr, MetaNameValue, Result, Token, parse::Parser,
    punctuated::Punctuated,
};

use crate::{declared, provenance::Provenance};

#[derive(Default)]
struct Arguments {
    name: Option<LitStr>,
    schema: u32,
    compatible_with: Option<u32>,
    current_thread: bool,
    worker_threads: usize,
}

/// The arguments in `tokens`; those of `tokio::main` among them if `is_main`.
fn arguments(tokens: TokenStream, is_main: bool) -> Result<Arguments> {
    let mut arguments = Arguments::default();
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
            (Some("compatible_with"), Lit::Int(lowest)) => {
                arguments.compatible_with = Some(lowest.base10_parse()?);
            }
            (Some("flavor"), Lit::Str(flavor)) if is_main => {
                arguments.current_thread = match flavor.value().as_str() {
                    "multi_thread" => false,
                    "current_thread" => true,
                    _ => {
                        let message = "expected \"multi_thread\" or \"current_thread\"";
                        return Err(Error::new_spanned(flavor, message));
                    }
                };
            }
            (Some("worker_threads"), Lit::Int(threads)) if is_main => {
                arguments.worker_threads = threads.base10_parse()?;
            }
            _ => {
                let message = if is_main {
                    "expected `name = \"…\"`, `schema = N`, `compatible_with = N`, `flavor = \"…\"` or `worker_threads = N`"
                } else {
                    "expected `name = \"…\"`, `schema = N` or `compatible_with = N`"
                };
                return Err(Error::new_spanned(&pair, message));
            }
        }
    }
    if let Some(lowest) = arguments.compatible_with
        && lowest >= arguments.schema
    {
        let message = "`compatible_with` is an older schema than `schema`: a version of that one runs with the state of this one";
        return Err(Error::new(Span::call_site(), message));
    }
    Ok(arguments)
}

/// `#[app]`: `item` is the constructor.
pub(crate) fn expand(attribute: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let arguments = arguments(attribute, false)?;
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
    let exported = exported(
        &arguments,
        &quote!(handover::start(host, settings, |cx| #call)),
    );
    Ok(quote! {
        #function
        #exported
    })
}

/// `#[main]`: `item` is the `main` of a program, which stays one, and is the constructor in a
/// plugin.
pub(crate) fn expand_main(attribute: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let arguments = arguments(attribute, true)?;
    let ItemFn {
        attrs,
        vis,
        mut sig,
        block,
        ..
    } = syn::parse2(item)?;
    if sig.asyncness.take().is_none() {
        let message = "`main` is async here: what it awaits runs on the runtime that this makes";
        return Err(Error::new_spanned(&sig, message));
    }
    if !sig.inputs.is_empty() || !sig.generics.params.is_empty() {
        let message = "`main` takes no arguments; `handover_plugin::Context::current()` is what a plugin knows of itself";
        return Err(Error::new_spanned(&sig, message));
    }
    let output = &sig.output;
    let ident = &sig.ident;
    let inner = format_ident!("__handover_{}", ident);
    let exported = exported(
        &arguments,
        &quote!(handover::start_main(host, settings, #inner)),
    );
    let Arguments {
        current_thread,
        worker_threads,
        ..
    } = arguments;
    Ok(quote! {
        #(#attrs)*
        async fn #inner() #output #block

        #[allow(dead_code, reason = "nobody calls it in a plugin")]
        #vis #sig {
            ::handover_plugin::__private::run(
                ::handover_plugin::__private::Flavor {
                    current_thread: #current_thread,
                    worker_threads: #worker_threads,
                },
                #inner,
            )
        }

        #exported
    })
}

/// What a plugin exports: the root table, whose constructor is the expression `start`, and the
/// manifest.
fn exported(arguments: &Arguments, start: &TokenStream) -> TokenStream {
    let Arguments { name, schema, .. } = arguments;
    let compatible_with = arguments.compatible_with.map(|lowest| {
        let line = format!("{{\"schema\":{{\"compatible_with\":{lowest}}}}}");
        declared::line(&format_ident!("__handover_schema_line"), &line)
    });
    let name = name.as_ref().map_or_else(
        || quote!(::core::env!("CARGO_PKG_NAME")),
        |name| quote!(#name),
    );
    let provenance = Provenance::of_this_crate().fields();
    let symbol = LitStr::new(
        &abi_stable_shared::mangled_root_module_loader_name(),
        Span::call_site(),
    );
    quote! {
        const _: () = {
            use ::handover_plugin::__private as handover;

            struct App;

            impl handover::Entry for App {
                fn start(
                    host: handover::HostHandle,
                    settings: handover::Lent<'_, handover::Settings<'_>>,
                ) -> ::core::result::Result<::std::boxed::Box<dyn handover::Plugin>, ::std::string::String> {
                    #start
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
                #provenance
            };

            ::handover_plugin::__own_heap!();

            #compatible_with

            #[used]
            #[unsafe(no_mangle)]
            #[unsafe(link_section = ".handover.manifest")]
            static HANDOVER_MANIFEST: [u8; FACTS.length()] = FACTS.section();
        };
    }
}
