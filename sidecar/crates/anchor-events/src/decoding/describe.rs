//! Event layouts in words: what two IDL versions are compared by.
//!
//! A type is written with everything that it is made of, so that texts differ wherever bytes would be read
//! differently, however deep.

use std::fmt::Write as _;

use super::layout::{Arena, Fields, Node, NodeId, Shape};

/// An event of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventDescription {
    /// Label of the version.
    pub idl: String,
    /// The event's name.
    pub event: String,
    /// Its discriminator, hexadecimal.
    pub discriminator: String,
    /// Its fields, in order.
    pub fields: Vec<FieldDescription>,
}

/// A field of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldDescription {
    /// Its name.
    pub name: String,
    /// Its type, written out.
    pub kind: String,
}

/// The fields of a layout.
pub(super) fn fields(shape: &Shape) -> Vec<FieldDescription> {
    let describe = |node| {
        let mut text = String::new();
        write_type(&mut text, &shape.arena, node);
        text
    };
    let fields = shape.fields.iter().map(|field| FieldDescription {
        name: field.name.clone(),
        kind: describe(field.node),
    });
    fields.collect()
}

fn write_type(text: &mut String, arena: &Arena, id: NodeId) {
    // Writing to a String cannot fail.
    match arena.node(id) {
        Node::Option(inner) => wrapped(text, arena, "option", *inner),
        Node::Coption(inner) => wrapped(text, arena, "coption", *inner),
        Node::Padded {
            before,
            inner,
            after,
        } => {
            let _ = write!(text, "padded({before}, ");
            write_type(text, arena, *inner);
            let _ = write!(text, ", {after})");
        }
        Node::Vec(element) => wrapped(text, arena, "vec", *element),
        Node::Array(element, length) => {
            text.push('[');
            write_type(text, arena, *element);
            let _ = write!(text, "; {length}]");
        }
        Node::Fields(fields) => write_fields(text, arena, fields),
        Node::Enum(variants) => {
            text.push_str("enum {");
            for (place, variant) in variants.iter().enumerate() {
                text.push_str(if place > 0 { ", " } else { "" });
                text.push_str(plain(&variant.key));
                if !matches!(&variant.fields, Fields::Named(named) if named.is_empty()) {
                    text.push(' ');
                    write_fields(text, arena, &variant.fields);
                }
            }
            text.push('}');
        }
        Node::Scalar(scalar) => text.push_str(&format!("{scalar:?}").to_lowercase()),
    }
}

fn wrapped(text: &mut String, arena: &Arena, word: &str, inner: NodeId) {
    text.push_str(word);
    text.push('<');
    write_type(text, arena, inner);
    text.push('>');
}

fn write_fields(text: &mut String, arena: &Arena, fields: &Fields) {
    let comma = |place| if place > 0 { ", " } else { "" };
    match fields {
        Fields::Named(named) => {
            text.push('{');
            for (place, (key, node)) in named.iter().enumerate() {
                let _ = write!(text, "{}{}: ", comma(place), plain(key));
                write_type(text, arena, *node);
            }
            text.push('}');
        }
        Fields::Tuple(nodes) => {
            text.push('(');
            for (place, node) in nodes.iter().enumerate() {
                text.push_str(comma(place));
                write_type(text, arena, *node);
            }
            text.push(')');
        }
    }
}

/// The name in a JSON key.
fn plain(key: &str) -> &str {
    key.trim_end_matches(':').trim_matches('"')
}
