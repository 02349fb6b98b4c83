//! What a declaration leaves in a library, as `abi::declared` of the SDK reads it.

use proc_macro2::{Ident, TokenStream};
use quote::quote;

/// The entry called `symbol` for the static `value`, which the SDK walks. Exported, so that no
/// linker drops what nobody names; and once, so that two of a name are an error when it is linked.
pub(crate) fn entry(symbol: &Ident, value: &TokenStream) -> TokenStream {
    quote! {
        #[allow(non_upper_case_globals)]
        #[used]
        #[unsafe(no_mangle)]
        #[unsafe(link_section = "handover_declared")]
        static #symbol: handover::Declared = handover::Declared(&#value);
    }
}

/// The line called `symbol`, which a host reads without running any code.
pub(crate) fn line(symbol: &Ident, line: &str) -> TokenStream {
    let length = line.len() + 1;
    quote! {
        #[allow(non_upper_case_globals)]
        #[used]
        #[unsafe(no_mangle)]
        #[unsafe(link_section = ".handover.declared")]
        static #symbol: [u8; #length] = handover::line(#line);
    }
}
