//! HTML out of templates: `{{name}}` is replaced and escaped, nothing else happens.
//!
//! A template is compiled in with `include_str!`, so a generation always renders its own. Loops and
//! choices are written in Rust: a row is a template of its own, and its [`Html`] goes into the
//! page's.

use std::fmt::Write as _;

/// Markup that is safe to send: either escaped by [`render`] or part of a template.
#[derive(Clone, Debug, Default)]
pub(crate) struct Html(String);

impl Html {
    /// Nothing at all: what stands for a part that a page leaves out.
    pub(crate) const EMPTY: Self = Self(String::new());

    /// The markup, to be sent.
    pub(crate) fn into_string(self) -> String {
        self.0
    }

    #[cfg(test)]
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromIterator<Html> for Html {
    fn from_iter<I: IntoIterator<Item = Self>>(parts: I) -> Self {
        Self(parts.into_iter().map(Self::into_string).collect())
    }
}

/// What a placeholder stands for. Whatever is not [`Html`] already gets escaped.
#[derive(Clone, Copy)]
pub(crate) enum Value<'a> {
    /// Text from anywhere; escaped.
    Text(&'a str),
    /// A whole number.
    Number(u64),
    /// Markup; passed through.
    Markup(&'a Html),
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a String> for Value<'a> {
    fn from(text: &'a String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Value<'_> {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl<'a> From<&'a Html> for Value<'a> {
    fn from(markup: &'a Html) -> Self {
        Self::Markup(markup)
    }
}

/// Fills the placeholders of `template`.
///
/// One pass: a value that contains `{{…}}` itself is shown, not filled. A placeholder without a
/// value is a mistake in this crate: it stops a debug build and renders as nothing in a release.
pub(crate) fn render(template: &str, values: &[(&str, Value<'_>)]) -> Html {
    let mut out = String::with_capacity(template.len() + template.len() / 2);
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        out.push_str(before);
        let Some((name, after)) = after.split_once("}}") else {
            debug_assert!(false, "a placeholder of the template is never closed");
            rest = "";
            break;
        };
        match values.iter().find(|(known, _)| *known == name) {
            Some((_, value)) => value.write_into(&mut out),
            None => debug_assert!(false, "the template asks for `{name}`, which has no value"),
        }
        rest = after;
    }
    out.push_str(rest);
    Html(out)
}

impl Value<'_> {
    fn write_into(self, out: &mut String) {
        match self {
            Self::Text(text) => escape_into(out, text),
            // Writing into a String cannot fail.
            Self::Number(number) => drop(write!(out, "{number}")),
            Self::Markup(html) => out.push_str(&html.0),
        }
    }
}

/// Escapes for element content and for quoted attributes alike.
fn escape_into(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_in_a_value_is_shown_and_not_run() {
        let html = render(
            "<p title=\"{{who}}\">{{who}}</p>",
            &[("who", "<script>alert(\"x\")</script>".into())],
        );
        let escaped = "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;";
        assert_eq!(
            html.as_str(),
            format!("<p title=\"{escaped}\">{escaped}</p>")
        );
    }

    #[test]
    fn a_placeholder_in_a_value_is_not_filled() {
        let html = render(
            "{{a}} {{b}}",
            &[("a", "{{b}}".into()), ("b", "secret".into())],
        );
        assert_eq!(html.as_str(), "{{b}} secret");
    }

    #[test]
    fn markup_made_by_a_template_is_not_escaped_twice() {
        let inner = render("<b>{{x}}</b>", &[("x", "a & b".into())]);
        let html = render("<p>{{inner}}</p>", &[("inner", (&inner).into())]);
        assert_eq!(html.as_str(), "<p><b>a &amp; b</b></p>");
    }
}
