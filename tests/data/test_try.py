from shapespace.datasets import RECIPES, find_recipe
from shapespace.data.pack import pack
from shapespace.data.store import Store
import pytest
@pytest.mark.parametrize("r",["dfaust","dfaust-registrations"])
def test_a(dfaust_root,tmp_path,r): go(r,dfaust_root,tmp_path)
@pytest.mark.parametrize("r",["faust","faust-registrations"])
def test_b(faust_root,tmp_path,r): go(r,faust_root,tmp_path)
@pytest.mark.parametrize("r",["cape","cape-raw"])
def test_c(cape_root,tmp_path,r): go(r,cape_root,tmp_path)
def test_d(synthetic_root,tmp_path): go("synthetic",synthetic_root,tmp_path)
def go(r,root,tmp):
    p=pack(find_recipe(r),root,tmp/"x.h5",points=500); print(p)
    s=Store(p.path); print(s.names, s.splits, s.about, s.origin(s.names[0]), s.truth(s.names[0]))
