"""Recipes: one file that says how to train a widened model beside its dense parent.

A recipe goes through these modules in this order: `schema` and `parsing` (what is asked for),
`trust` and `claiming` (whether it may be run, and whose the folder is), `data` and `preprocessing`
(examples), `building`, `arms` and `splitting` (what is compared), `running` (transformers'
Trainer), `results` and `report` (what came out). `library` holds the recipes that come with the
package, `sweeping` runs many.
"""

from ..extras import need

need("recipes", "Recipes")
