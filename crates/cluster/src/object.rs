//! Objects without their type, and the one static [`Kind`] that knows how to handle each type.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A Kubernetes object whose type is known to its [`Kind`] only. Implemented for every typed resource.
///
/// `Debug` of `dyn Object` prints the name and version, never the content: it may be a Secret.
pub trait Object: Any + Send + Sync {
    /// The object's metadata.
    fn meta(&self) -> &ObjectMeta;
    /// The object's metadata, to be changed.
    fn meta_mut(&mut self) -> &mut ObjectMeta;
    /// A copy of the whole object.
    fn copy(&self) -> Arc<dyn Object>;
    /// For casting back to the type.
    fn any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
    /// For casting back to the type by reference.
    fn any_ref(&self) -> &dyn Any;
    /// For casting back to the type by mutable reference.
    fn any_mut(&mut self) -> &mut dyn Any;
}

impl<K> Object for K
where
    K: kube::Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
{
    fn meta(&self) -> &ObjectMeta {
        kube::Resource::meta(self)
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        kube::Resource::meta_mut(self)
    }

    fn copy(&self) -> Arc<dyn Object> {
        Arc::new(self.clone())
    }

    fn any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }

    fn any_ref(&self) -> &dyn Any {
        self
    }

    fn any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

/// A mutable object: this one if nobody shares it, else a copy in its place.
pub fn own(object: &mut Arc<dyn Object>) -> &mut dyn Object {
    if Arc::get_mut(object).is_none() {
        *object = object.copy();
    }
    Arc::get_mut(object).expect("a fresh copy is not shared")
}

impl fmt::Debug for dyn Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let meta = self.meta();
        write!(f, "{}@{}", Key::of(self), meta.resource_version.as_deref().unwrap_or("new"))
    }
}

/// A type that the port can carry. Implemented by [`kind!`](crate::kind), one line per type.
pub trait Typed: Object + Clone + Serialize + DeserializeOwned {
    /// How the port handles this type.
    const KIND: &'static Kind;
}

/// The typed object behind an erased one.
pub fn typed<K: Typed>(object: Arc<dyn Object>) -> Arc<K> {
    object.any().downcast::<K>().expect("a port answers with objects of the kind it was asked for")
}

/// The typed object behind an erased reference; `None` if it is of another type.
pub fn typed_ref<K: Typed>(object: &dyn Object) -> Option<&K> {
    object.any_ref().downcast_ref::<K>()
}

/// Namespace and name of an object. A cluster-scoped object has an empty namespace.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Key {
    /// The namespace; empty for cluster-scoped objects.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl Key {
    /// The key of an object in a namespace.
    pub fn namespaced(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The key of a cluster-scoped object.
    pub fn cluster(name: impl Into<String>) -> Self {
        Self { namespace: String::new(), name: name.into() }
    }

    /// The key of an object, from its metadata.
    pub fn of(object: &dyn Object) -> Self {
        Self::of_meta(object.meta())
    }

    /// The key that this metadata names.
    pub fn of_meta(meta: &ObjectMeta) -> Self {
        Self { namespace: meta.namespace.clone().unwrap_or_default(), name: meta.name.clone().unwrap_or_default() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Everything the port needs to know about one type. Made by [`kind!`](crate::kind); compare with `==`, which looks at the names.
pub struct Kind {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// API version within the group.
    pub version: &'static str,
    /// Plural name, as in URLs and RBAC rules.
    pub plural: &'static str,
    /// Kind, as in manifests.
    pub kind: &'static str,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Whether the type is one of ours: a custom resource, whose status calls leave all metadata alone.
    pub custom: bool,
    /// Whether the server counts `metadata.generation`: it starts at 1 and rises with each change of spec.
    pub generation: bool,
    /// The status subresource, if the type has one.
    pub status: Option<StatusParts>,
    /// Reads one object from JSON.
    pub decode: fn(&[u8]) -> serde_json::Result<Arc<dyn Object>>,
    /// Reads the items of a list from JSON.
    pub decode_list: DecodeList,
    /// Reads one object from a JSON value.
    pub from_value: fn(Value) -> serde_json::Result<Arc<dyn Object>>,
    /// Writes one object as JSON.
    pub encode: fn(&dyn Object) -> serde_json::Result<Vec<u8>>,
    /// Writes one object as a JSON value.
    pub to_value: fn(&dyn Object) -> serde_json::Result<Value>,
    /// Whether two objects are the same but for their status and metadata.
    pub same_spec: fn(&dyn Object, &dyn Object) -> bool,
    /// Whether an object is of this type.
    pub is: fn(&dyn Object) -> bool,
}

/// Reads the items of a list from JSON.
pub type DecodeList = fn(&[u8]) -> serde_json::Result<Vec<Arc<dyn Object>>>;

/// How to reach the status of a type that has the subresource.
pub struct StatusParts {
    /// Whether two objects have the same status.
    pub same: fn(&dyn Object, &dyn Object) -> bool,
    /// Exchanges the status of two objects.
    pub swap: fn(&mut dyn Object, &mut dyn Object),
    /// Copies the status of the second object into the first.
    pub copy: fn(&mut dyn Object, &dyn Object),
    /// Empties the status.
    pub clear: fn(&mut dyn Object),
    /// The status as a JSON value; null if there is none.
    pub to_value: fn(&dyn Object) -> serde_json::Result<Value>,
    /// Sets the status from a JSON value.
    pub set_value: fn(&mut dyn Object, Value) -> serde_json::Result<()>,
}

impl Kind {
    /// `apiVersion` as in manifests.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The URL path of all objects, or of those in one namespace.
    pub fn path(&self, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() { "/api" } else { "/apis/" };
        let (group, version, plural) = (self.group, self.version, self.plural);
        match namespace {
            Some(namespace) if self.namespaced => format!("{root}{group}/{version}/namespaces/{namespace}/{plural}"),
            _ => format!("{root}{group}/{version}/{plural}"),
        }
    }

    /// The URL path of one object.
    pub fn path_of(&self, key: &Key) -> String {
        format!("{}/{}", self.path(Some(&key.namespace)), key.name)
    }
}

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other) || (self.plural == other.plural && self.group == other.group)
    }
}

impl Eq for Kind {}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.plural)
    }
}

/// What the macro puts into a [`Kind`]; public because the macro expands elsewhere.
#[doc(hidden)]
pub mod erased {
    use super::{Arc, Object, Typed, Value, typed_ref};
    use serde::Deserialize;

    const TYPE: &str = "a Kind is used with objects of its own type";

    pub fn of<K: Typed>(object: &dyn Object) -> &K {
        typed_ref(object).expect(TYPE)
    }

    pub fn of_mut<K: Typed>(object: &mut dyn Object) -> &mut K {
        object.any_mut().downcast_mut::<K>().expect(TYPE)
    }

    pub fn is<K: Typed>(object: &dyn Object) -> bool {
        typed_ref::<K>(object).is_some()
    }

    pub fn decode<K: Typed>(json: &[u8]) -> serde_json::Result<Arc<dyn Object>> {
        serde_json::from_slice::<K>(json).map(|object| Arc::new(object) as Arc<dyn Object>)
    }

    #[derive(Deserialize)]
    #[serde(bound = "K: Typed")]
    struct Page<K> {
        items: Vec<K>,
    }

    pub fn decode_list<K: Typed>(json: &[u8]) -> serde_json::Result<Vec<Arc<dyn Object>>> {
        let page = serde_json::from_slice::<Page<K>>(json)?;
        Ok(page.items.into_iter().map(|object| Arc::new(object) as Arc<dyn Object>).collect())
    }

    pub fn from_value<K: Typed>(value: Value) -> serde_json::Result<Arc<dyn Object>> {
        serde_json::from_value::<K>(value).map(|object| Arc::new(object) as Arc<dyn Object>)
    }

    pub fn encode<K: Typed>(object: &dyn Object) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(of::<K>(object))
    }

    pub fn to_value<K: Typed>(object: &dyn Object) -> serde_json::Result<Value> {
        serde_json::to_value(of::<K>(object))
    }
}
