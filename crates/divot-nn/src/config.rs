/// Declares a configuration whose optional fields may be missing from its file.
///
/// `#[derive(Config)]` of Burn 0.22 refuses a file without a field that has a default, so a new field
/// would break every older `config.json`. This macro declares the same API, `new` with the required fields
/// and one `with_` function for each optional field, and fills in the defaults on reading.
///
/// The calling crate must depend on `burn`.
///
/// ```
/// use burn::config::Config;
///
/// divot_nn::config! {
///     /// Sizes of a network.
///     #[derive(PartialEq)]
///     pub struct NetworkConfig {
///         /// Width.
///         pub width: usize,
///     }
///     defaults {
///         /// Number of heads.
///         pub heads, with_heads: usize = 8,
///     }
/// }
///
/// let older = NetworkConfig::load_binary(br#"{"width": 64}"#).unwrap();
/// assert_eq!(older, NetworkConfig::new(64).with_heads(8));
/// assert!(NetworkConfig::load_binary(br#"{"heads": 8}"#).is_err());
/// ```
#[macro_export]
macro_rules! config {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $($(#[$required_meta:meta])* pub $required:ident: $required_type:ty,)*
        }
        defaults {
            $($(#[$meta_of:meta])* pub $field:ident, $with:ident: $type:ty = $default:expr,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, burn::serde::Serialize)]
        #[serde(crate = "burn::serde")]
        pub struct $name {
            $($(#[$required_meta])* pub $required: $required_type,)*
            $(
                $(#[$meta_of])*
                #[doc = concat!("\n\nDefault: `", stringify!($default), "`.")]
                pub $field: $type,
            )*
        }

        impl $name {
            /// Creates a configuration with the default of every optional field.
            pub fn new($($required: $required_type),*) -> Self {
                Self {
                    $($required,)*
                    $($field: $default,)*
                }
            }

            $(
                #[doc = concat!("Sets the field [`", stringify!($field), "`](Self::", stringify!($field), ").")]
                pub fn $with(mut self, $field: $type) -> Self {
                    self.$field = $field;
                    self
                }
            )*
        }

        impl<'de> burn::serde::Deserialize<'de> for $name {
            fn deserialize<D>(deserializer: D) -> Result<Self, D::Error>
            where
                D: burn::serde::Deserializer<'de>,
            {
                #[derive(burn::serde::Deserialize)]
                #[serde(crate = "burn::serde")]
                struct Fields {
                    $($required: $required_type,)*
                    $($field: Option<$type>,)*
                }

                let fields = Fields::deserialize(deserializer)?;
                Ok(Self {
                    $($required: fields.$required,)*
                    $($field: fields.$field.unwrap_or_else(|| $default),)*
                })
            }
        }

        impl burn::config::Config for $name {}
    };
}
