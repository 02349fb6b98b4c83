//! `#[job]` and `#[schedule]`: what a plugin declares beside a handler.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{
    Error, Expr, ItemFn, Lit, LitStr, Meta, MetaNameValue, Result, Token, parse::Parser,
    punctuated::Punctuated, spanned::Spanned,
};

use crate::declared;

/// The declaration of a handler: a JSON object in the making.
struct Line(String);

impl Line {
    fn new(name: &str) -> Self {
        Self(format!("{{\"job\":\"{name}\""))
    }

    fn text(&mut self, key: &str, value: &str) {
        self.0.push_str(&format!(",\"{key}\":\"{value}\""));
    }

    fn number(&mut self, key: &str, value: u64) {
        self.0.push_str(&format!(",\"{key}\":{value}"));
    }

    fn end(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

/// A name of a job: what may stand in a symbol, in JSON and on a command line.
fn job_name(literal: &LitStr) -> Result<String> {
    let name = literal.value();
    let fits = matches!(name.len(), 1..=64)
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    if fits {
        Ok(name)
    } else {
        let message = "a name of a job is 1 to 64 letters, digits, - and _";
        Err(Error::new_spanned(literal, message))
    }
}

/// A text that stands in JSON as it is.
fn plain(literal: &LitStr) -> Result<String> {
    let text = literal.value();
    let fits = !text.is_empty()
        && text
            .bytes()
            .all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\'));
    if fits {
        Ok(text)
    } else {
        Err(Error::new_spanned(
            literal,
            "this is empty, or has characters that do not fit",
        ))
    }
}

/// The milliseconds of a text such as `90s`, `15m` or `1h 30m`.
fn milliseconds(literal: &LitStr) -> Result<u64> {
    let text = literal.value();
    let mut sum: Option<u64> = None;
    for part in text.split_whitespace() {
        let digits = part.trim_start_matches(|c: char| c.is_ascii_digit());
        let number = part[..part.len() - digits.len()].parse::<u64>().ok();
        let unit = match digits {
            "ms" => 1,
            "s" => 1000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => 0,
        };
        let part = number.and_then(|number| number.checked_mul(unit));
        sum = match part {
            Some(part) if part > 0 => sum.unwrap_or(0).checked_add(part),
            _ => {
                let message = "a time is a number and one of ms, s, m, h, d, as `90s` or `1h 30m`";
                return Err(Error::new_spanned(literal, message));
            }
        };
    }
    sum.ok_or_else(|| Error::new_spanned(literal, "a time is expected, as `90s`"))
}

/// Takes an argument that jobs and schedules have; gives the name where it is that.
fn common(pair: &MetaNameValue, line: &mut Line, name: &mut String) -> Result<bool> {
    let Expr::Lit(value) = &pair.value else {
        return Err(Error::new_spanned(&pair.value, "a literal is expected"));
    };
    let key = pair.path.get_ident().map(ToString::to_string);
    match (key.as_deref(), &value.lit) {
        (Some("name"), Lit::Str(text)) => {
            *name = job_name(text)?;
        }
        (Some(key @ ("concurrency" | "tenant_concurrency" | "max_attempts")), Lit::Int(number)) => {
            let value: u64 = number.base10_parse()?;
            if value == 0 {
                return Err(Error::new_spanned(number, "at least 1 is expected"));
            }
            line.number(key, value);
        }
        (Some(key @ ("timeout" | "backoff" | "longest_backoff")), Lit::Str(text)) => {
            line.number(&format!("{key}_ms"), milliseconds(text)?);
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// `#[job]`: `item` is the handler.
pub(crate) fn expand_job(attribute: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let function = handler(item, 2, "a `JobContext` and its payload")?;
    let mut name = function.sig.ident.to_string();
    let mut options = Line(String::new());
    for pair in Punctuated::<MetaNameValue, Token![,]>::parse_terminated.parse2(attribute)? {
        if !common(&pair, &mut options, &mut name)? {
            let message = "expected `name`, `concurrency`, `tenant_concurrency`, `max_attempts`, `timeout`, `backoff` or `longest_backoff`";
            return Err(Error::new_spanned(&pair, message));
        }
    }
    Ok(declaration(&function, &name, options, false))
}

/// `#[schedule]`: `item` is the handler.
pub(crate) fn expand_schedule(attribute: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let function = handler(item, 1, "a `JobContext`")?;
    let mut name = function.sig.ident.to_string();
    let mut options = Line(String::new());
    let mut is_due = false;
    let span = attribute.span();
    let arguments = Punctuated::<Argument, Token![,]>::parse_terminated.parse2(attribute)?;
    for argument in arguments {
        let pair = match argument {
            Argument::Cron(cron) => {
                options.text("schedule", &plain(&cron)?);
                is_due = true;
                continue;
            }
            Argument::Pair(pair) => pair,
        };
        let text = match &pair.value {
            Expr::Lit(value) => match &value.lit {
                Lit::Str(text) => Some(text),
                _ => None,
            },
            _ => None,
        };
        let key = pair.path.get_ident().map(ToString::to_string);
        match (key.as_deref(), text) {
            (Some("tz"), Some(text)) => options.text("tz", &plain(text)?),
            (Some("every"), Some(text)) => {
                options.number("every_ms", milliseconds(text)?);
                is_due = true;
            }
            (Some("missed"), Some(text)) => {
                let missed = text.value();
                if !matches!(missed.as_str(), "none" | "one" | "all") {
                    return Err(Error::new_spanned(
                        text,
                        "expected \"none\", \"one\" or \"all\"",
                    ));
                }
                options.text("missed", &missed);
            }
            _ => {
                if !common(&pair, &mut options, &mut name)? {
                    let message = "expected a cron expression, `every`, `tz`, `missed`, `name`, `max_attempts`, `timeout`, `backoff` or `longest_backoff`";
                    return Err(Error::new_spanned(&pair, message));
                }
            }
        }
    }
    if !is_due {
        let message = "when is it due? A cron expression, as \"0 3 * * *\", or `every = \"15m\"`";
        return Err(Error::new(span, message));
    }
    Ok(declaration(&function, &name, options, true))
}

/// An argument of `#[schedule]`.
enum Argument {
    Cron(LitStr),
    Pair(Box<MetaNameValue>),
}

impl syn::parse::Parse for Argument {
    fn parse(input: syn::parse::ParseStream<'_>) -> Result<Self> {
        if input.peek(LitStr) {
            return input.parse().map(Self::Cron);
        }
        match input.parse()? {
            Meta::NameValue(pair) => Ok(Self::Pair(Box::new(pair))),
            other => Err(Error::new_spanned(other, "expected `name = value`")),
        }
    }
}

/// The function that is declared.
fn handler(item: TokenStream, inputs: usize, takes: &str) -> Result<ItemFn> {
    let function: ItemFn = syn::parse2(item)?;
    if function.sig.asyncness.is_none() || function.sig.inputs.len() != inputs {
        let message = format!(
            "a handler is an `async fn` that takes {takes}, and gives a `Result<_, JobError>`"
        );
        return Err(Error::new_spanned(&function.sig, message));
    }
    Ok(function)
}

/// The function, and what is declared of it.
fn declaration(function: &ItemFn, name: &str, options: Line, scheduled: bool) -> TokenStream {
    let mut line = Line::new(name);
    line.0.push_str(&options.0);
    let line = line.end();
    let ident = &function.sig.ident;
    let symbol = name.replace('-', "_");
    let entry = format_ident!("__handover_job_{}", symbol);
    let text = format_ident!("__handover_job_line_{}", symbol);
    let entry = declared::entry(&entry, &quote!(HANDLER));
    let text = declared::line(&text, &line);
    let run = if scheduled {
        quote!(|cx, _| handover::run_scheduled(cx, super_handler))
    } else {
        quote!(|cx, payload| handover::run_job(cx, &payload, super_handler))
    };
    quote! {
        #function

        const _: () = {
            use ::handover_plugin::__private as handover;
            use #ident as super_handler;

            static HANDLER: handover::JobHandler = handover::JobHandler {
                name: #name,
                line: #line,
                run: #run,
            };

            #entry
            #text
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(attribute: &str) -> String {
        let item = quote!(
            async fn nightly(cx: JobContext) -> Result<(), JobError> {
                Ok(())
            }
        );
        let attribute = attribute.parse().expect("tokens");
        expand_schedule(attribute, item)
            .expect_err("refused")
            .to_string()
    }

    #[test]
    fn a_schedule_says_when_it_is_due_or_is_refused() {
        assert!(error("").contains("when is it due?"));
        assert!(error("every = \"15 parsecs\"").contains("a time is a number"));
        assert!(error("\"0 3 * * *\", missed = \"some\"").contains("\"none\""));
        assert!(error("\"0 3 * * *\", when = \"now\"").contains("expected a cron expression"));
    }

    #[test]
    fn times_are_added_up() {
        let time = |text: &str| milliseconds(&LitStr::new(text, proc_macro2::Span::call_site()));
        assert_eq!(time("1h 30m").expect("a time"), 5_400_000);
        assert_eq!(time("250ms").expect("a time"), 250);
        for wrong in ["", "0s", "1", "s", "1y", "99999999999999999999s"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }
}
